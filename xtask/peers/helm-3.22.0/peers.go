//go:build peers

// Package peers names the programs that are built from this module.
package peers

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
