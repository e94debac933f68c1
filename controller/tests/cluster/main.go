// A Kubernetes API server for tests: the real kube-apiserver and etcd in one process, on loopback only.
//
// Started in a directory, it makes what it needs there (keys, certificates, kubeconfigs, data of etcd), so a second
// start in the same directory is the same cluster, at the same address. It is no cluster otherwise: no controller
// manager, no scheduler and no node; objects stay as clients write them.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

const usage = `usage:
  cluster serve --dir DIR [--port PORT] [--watch-stdin]
  cluster token --dir DIR --namespace NS --name SERVICEACCOUNT --uid UID --seconds N
  cluster kubeconfig --dir DIR --user NAME [--groups A,B]
  cluster kubectl ARGUMENTS

serve prints "ready KUBECONFIG" once /readyz is ok and ends on SIGTERM, SIGINT, or (--watch-stdin) when its standard
input closes. token signs one that may be shorter than the ten minutes of the TokenRequest API. kubeconfig prints one
with a client certificate.
`

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("no command\n%s", usage))
	}
	if os.Args[1] == "kubectl" {
		if err := kubectl(os.Args[2:]); err != nil {
			fail(err)
		}
		return
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	dir := flags.String("dir", "", "")
	var run func() error
	switch os.Args[1] {
	case "serve":
		port := flags.Int("port", 0, "")
		watchStdin := flags.Bool("watch-stdin", false, "")
		run = func() error { return serve(*dir, *port, *watchStdin) }
	case "token":
		namespace := flags.String("namespace", "", "")
		name := flags.String("name", "", "")
		uid := flags.String("uid", "", "")
		seconds := flags.Int("seconds", 60, "")
		run = func() error {
			token, err := signToken(*dir, *namespace, *name, *uid, time.Duration(*seconds)*time.Second)
			return printLine(token, err)
		}
	case "kubeconfig":
		user := flags.String("user", "", "")
		groups := flags.String("groups", "", "")
		run = func() error {
			config, err := clientKubeconfig(*dir, *user, strings.FieldsFunc(*groups, isComma))
			return printLine(config, err)
		}
	default:
		fail(fmt.Errorf("no command %q\n%s", os.Args[1], usage))
	}
	// ExitOnError: it does not return one.
	_ = flags.Parse(os.Args[2:])
	if *dir == "" {
		fail(fmt.Errorf("--dir is missing\n%s", usage))
	}
	if err := run(); err != nil {
		fail(err)
	}
}

func isComma(r rune) bool { return r == ',' }

func printLine(text string, err error) error {
	if err == nil {
		fmt.Println(text)
	}
	return err
}

func fail(err error) {
	fmt.Fprintf(terminal, "cluster: %v\n", err)
	os.Exit(1)
}
