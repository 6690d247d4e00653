//go:build peers

// Package peers names the programs that are built from this module.
package peers

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
