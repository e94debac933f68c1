//go:build !assets

package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	apiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/version"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

var backend = "Kubernetes " + version.Get().GitVersion + ", embedded"

type embedded struct {
	etcd *embed.Etcd
	api  chan error
}

func start(dir, socket string, flags []string) (started, error) {
	etcd, err := startEtcd(dir, socket)
	if err != nil {
		return nil, err
	}
	command := app.NewAPIServerCommand()
	command.SetArgs(flags)
	command.SetOut(os.Stderr)
	command.SilenceErrors = true
	api := make(chan error, 1)
	go func() { api <- command.Execute() }()
	return &embedded{etcd, api}, nil
}

// kubectl for machines that have none: Debian 12's is too old to know tokens and subresources.
func kubectl(arguments []string) error {
	os.Args = append([]string{"kubectl"}, arguments...)
	os.Exit(cli.Run(cmd.NewDefaultKubectlCommand()))
	return nil
}

func startEtcd(dir, socket string) (*embed.Etcd, error) {
	config := embed.NewConfig()
	config.Dir = filepath.Join(dir, "etcd")
	config.LogLevel = "error"
	config.LogOutputs = []string{filepath.Join(dir, "log")}
	// What a crash of the machine leaves is of no use to a test; what a killed process wrote, the kernel has.
	config.UnsafeNoFsync = true
	// A member alone waits for its own election only.
	config.TickMs, config.ElectionMs = 20, 200
	client, err := url.Parse(socket)
	if err != nil {
		return nil, err
	}
	// It wants host and port where others would look for it; nobody does.
	nobody := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*client}, nobody
	config.ListenPeerUrls, config.AdvertisePeerUrls = nobody, nobody
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, fmt.Errorf("cannot start etcd: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err := <-etcd.Err():
		return nil, fmt.Errorf("etcd: %w", err)
	case <-time.After(startTimeout):
		etcd.Close()
		return nil, errors.New("etcd is not ready")
	}
}

func (e *embedded) wait() error {
	select {
	case err := <-e.api:
		if err != nil {
			err = fmt.Errorf("kube-apiserver: %w", err)
		}
		e.api <- err
		return err
	case err := <-e.etcd.Err():
		return fmt.Errorf("etcd: %w", err)
	}
}

func (e *embedded) stop() {
	apiserver.RequestShutdown()
	select {
	case <-e.api:
	case <-time.After(stopTimeout):
	}
	e.etcd.Close()
}
