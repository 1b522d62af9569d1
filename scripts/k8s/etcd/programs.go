//go:build tools

// Keeps the program that the control plane's tests run in go.mod.
package programs

import _ "go.etcd.io/etcd/server/v3"
