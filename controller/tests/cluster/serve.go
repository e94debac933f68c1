package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Below the kernel's usual range of ephemeral ports (from 32768), so that no client takes the port of a server that is
// down for a moment.
const firstPort, ports = 20000, 12000

const (
	startTimeout = 2 * time.Minute
	stopTimeout  = 5 * time.Second
)

// started is what runs of a cluster, embedded or as programs of their own.
type started interface {
	// wait returns when one of the servers has ended.
	wait() error
	// stop ends the servers in good order and returns when they have ended.
	stop()
}

func serve(dir string, port int, watchStdin bool) error {
	began := time.Now()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	port, err = choosePort(dir, port)
	if err != nil {
		return err
	}
	if err := makeFiles(dir, port); err != nil {
		return fmt.Errorf("cannot make keys and certificates in %s: %w", dir, err)
	}
	if err := logToFile(dir); err != nil {
		return err
	}
	asked := make(chan struct{})
	if watchStdin {
		go func() {
			// Read to its end: the pipe closes when whoever started this ends, however it ends.
			_, _ = io.Copy(io.Discard, os.Stdin)
			close(asked)
		}()
	}
	servers, err := start(dir, etcdSocket(dir), apiServerFlags(dir, port))
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- servers.wait() }()
	go announce(dir, port, began)
	select {
	case err = <-ended:
		if err != nil {
			fmt.Fprintf(terminal, "cluster: %v; see %s\n", err, filepath.Join(dir, "log"))
		}
	case <-asked:
	}
	servers.stop()
	return err
}

// choosePort: the one asked for, else the one of the last start in this directory, else a free one.
func choosePort(dir string, asked int) (int, error) {
	file := filepath.Join(dir, "port")
	port := asked
	if port == 0 {
		if text, err := os.ReadFile(file); err == nil {
			port, err = strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				return 0, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	if port != 0 {
		return port, os.WriteFile(file, []byte(strconv.Itoa(port)), 0o600)
	}
	for range 100 {
		port = firstPort + rand.IntN(ports)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		listener.Close()
		return port, os.WriteFile(file, []byte(strconv.Itoa(port)), 0o600)
	}
	return 0, fmt.Errorf("no port from %d to %d is free on loopback", firstPort, firstPort+ports-1)
}

// terminal is standard error as it was at the start.
var terminal = os.Stderr

// logToFile sends standard error, where both servers log, to a file; standard output keeps the lines for the caller.
func logToFile(dir string) error {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	old, err := syscall.Dup(2)
	if err != nil {
		return err
	}
	syscall.CloseOnExec(old)
	terminal = os.NewFile(uintptr(old), "terminal")
	return syscall.Dup3(int(log.Fd()), 2, 0)
}

func etcdSocket(dir string) string { return "unix://" + filepath.Join(dir, "etcd.sock") }

func apiServerFlags(dir string, port int) []string {
	file := func(name string) string { return filepath.Join(dir, name) }
	return []string{
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--etcd-servers=" + etcdSocket(dir),
		// The endpoints of the Service `kubernetes` must not be loopback, and nothing here asks for them.
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=10.96.0.0/16,fd96::/108",
		"--tls-cert-file=" + file("server.crt"),
		"--tls-private-key-file=" + file("server.key"),
		"--client-ca-file=" + file("ca.crt"),
		"--authorization-mode=RBAC",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + file("service-accounts.key"),
		"--service-account-signing-key-file=" + file("service-accounts.key"),
		"--service-account-extend-token-expiration=false",
		// Without a controller manager no namespace has the ServiceAccount that it would give to Pods.
		"--disable-admission-plugins=ServiceAccount",
		"--allow-privileged=true",
		"--profiling=false",
	}
}

// announce asks /readyz until it says ok, then tells whoever waits for that.
func announce(dir string, port int, began time.Time) {
	client, err := adminClient(dir)
	if err != nil {
		fail(err)
	}
	url := fmt.Sprintf("https://127.0.0.1:%d/readyz", port)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for !ready(ctx, client, url) {
		select {
		case <-ctx.Done():
			fail(fmt.Errorf("not ready after %s; see %s", startTimeout, filepath.Join(dir, "log")))
		case <-time.After(20 * time.Millisecond):
		}
	}
	fmt.Printf("ready %s\n", filepath.Join(dir, "admin.kubeconfig"))
	fmt.Printf("started in %d ms with %s\n", time.Since(began).Milliseconds(), backend)
}

func ready(ctx context.Context, client *http.Client, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode == http.StatusOK
}

func adminClient(dir string) (*http.Client, error) {
	pool, err := readPool(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "admin.crt"), filepath.Join(dir, "admin.key"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: 5 * time.Second}, nil
}
