//go:build assets

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Programs of KUBEBUILDER_ASSETS in place of what embedded.go links; so this builds without any module.
var backend = "programs in " + os.Getenv("KUBEBUILDER_ASSETS")

type programs struct {
	etcd, api *program
	signals   chan os.Signal
}

type program struct {
	name    string
	command *exec.Cmd
	ended   chan struct{}
	err     error
}

func start(dir, socket string, flags []string) (started, error) {
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		return nil, errors.New("built for KUBEBUILDER_ASSETS, which is not set")
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	etcd, err := startProgram(filepath.Join(assets, "etcd"), []string{
		"--data-dir=" + filepath.Join(dir, "etcd"), "--log-level=error", "--unsafe-no-fsync",
		"--heartbeat-interval=20", "--election-timeout=200",
		"--listen-client-urls=" + socket, "--advertise-client-urls=http://127.0.0.1:0",
		"--listen-peer-urls=http://127.0.0.1:0", "--initial-advertise-peer-urls=http://127.0.0.1:0",
		"--initial-cluster=default=http://127.0.0.1:0",
	})
	if err != nil {
		return nil, err
	}
	// It tries etcd again until that answers.
	api, err := startProgram(filepath.Join(assets, "kube-apiserver"), flags)
	if err != nil {
		etcd.stop()
		return nil, err
	}
	return &programs{etcd, api, signals}, nil
}

func kubectl(arguments []string) error {
	path := filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl")
	return fmt.Errorf("cannot run %s: %w", path, syscall.Exec(path, append([]string{"kubectl"}, arguments...), os.Environ()))
}

func (p *programs) wait() error {
	select {
	case <-p.signals:
		return nil
	case <-p.api.ended:
		return p.api.result()
	case <-p.etcd.ended:
		return p.etcd.result()
	}
}

func (p *programs) stop() {
	p.api.stop()
	p.etcd.stop()
}

func startProgram(path string, flags []string) (*program, error) {
	p := &program{name: path, command: exec.Command(path, flags...), ended: make(chan struct{})}
	p.command.Stdout, p.command.Stderr = os.NewFile(2, "log"), os.NewFile(2, "log")
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	begun := make(chan error)
	go func() {
		// The signal comes when the thread that started it ends, so that thread waits with it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.command.Start()
		begun <- err
		if err == nil {
			p.err = p.command.Wait()
			close(p.ended)
		}
	}()
	if err := <-begun; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", path, err)
	}
	return p, nil
}

func (p *program) result() error {
	if p.err != nil {
		return fmt.Errorf("%s: %w", p.name, p.err)
	}
	return fmt.Errorf("%s ended", p.name)
}

func (p *program) stop() {
	_ = p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		_ = p.command.Process.Kill()
		<-p.ended
	}
}
