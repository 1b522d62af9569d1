// CoreDNS with the plugins that a cluster without an outside needs, and no others: they would quadruple the build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// In this order a query passes them.
	dnsserver.Directives = []string{"ready", "errors", "cache", "template", "kubernetes"}
	coremain.Run()
}
