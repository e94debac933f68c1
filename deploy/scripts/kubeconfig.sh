#!/usr/bin/env bash
# Prints a kubeconfig for the controller on a firewall, as the service account of deploy/base: with a token in it, or, with
# a second argument, with the path of a file that holds the token. Both may be replaced at any time; the controller
# goes on with the new one. Run it with a kubeconfig of an administrator:
#   deploy/scripts/kubeconfig.sh 24h >kubeconfig
#   deploy/scripts/kubeconfig.sh 24h /etc/firewall-controller/token >kubeconfig
#   kubectl -n firewall create token firewall-controller --duration 24h >token
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  echo "usage: kubeconfig.sh DURATION [TOKENFILE]" >&2
  exit 2
fi
umask 077
show() { kubectl config view --raw --minify --flatten -o jsonpath="{.clusters[0].cluster.$1}"; }
server=$(show server)
authority=$(show certificate-authority-data)
if [ $# -eq 2 ]; then
  user="tokenFile: $2"
else
  user="token: $(kubectl -n firewall create token firewall-controller --duration "$1")"
fi
cat <<CONFIG
apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster:
    server: $server
    certificate-authority-data: $authority
users:
- name: firewall-controller
  user:
    $user
contexts:
- name: firewall
  context: {cluster: cluster, user: firewall-controller, namespace: firewall}
current-context: firewall
CONFIG
