// Istio's control plane, its proxy's agent and its CNI plugin in one program: the name that it is called by says which.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	cni "github.com/containernetworking/cni/pkg/version"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"istio.io/istio/cni/pkg/plugin"
	agent "istio.io/istio/pilot/cmd/pilot-agent/app"
	discovery "istio.io/istio/pilot/cmd/pilot-discovery/app"
	istioagent "istio.io/istio/pkg/istio-agent"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/sds"
)

func main() {
	if err := run(filepath.Base(os.Args[0])); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string) error {
	switch name {
	case "pilot-discovery":
		log.EnableKlogWithCobra()
		return discovery.NewRootCommand().Execute()
	case "pilot-agent":
		log.EnableKlogWithCobra()
		return agent.NewRootCommand(secrets).Execute()
	case "istio-cni":
		return runPlugin()
	}
	return fmt.Errorf("%s: call it by the name of a program: pilot-discovery pilot-agent istio-cni", name)
}

func secrets(o *security.Options, cache security.SecretManager, keys *meshconfig.PrivateKeyProvider) istioagent.SDSService {
	return sds.NewServer(o, cache, keys)
}

func runPlugin() error {
	if err := log.Configure(plugin.GetLoggingOptions(nil)); err != nil {
		return err
	}
	calls := skel.CNIFuncs{Add: plugin.CmdAdd, Del: plugin.CmdDelete, Check: plugin.CmdCheck}
	if failed := skel.PluginMainFuncsWithError(calls, cni.All, "istio-cni"); failed != nil {
		_ = failed.Print() // As the protocol has it: the error is an object on standard output.
		return failed
	}
	return nil
}
