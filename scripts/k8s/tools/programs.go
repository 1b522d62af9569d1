//go:build tools

// Keeps the programs that the chart's tests run in go.mod.
package programs

import (
	_ "github.com/yannh/kubeconform/cmd/kubeconform"
	_ "helm.sh/helm/v3/cmd/helm"
)
