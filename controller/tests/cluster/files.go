package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const issuer = "https://kubernetes.default.svc"

// makeFiles makes keys, certificates and the kubeconfig of the administrator unless they are there.
func makeFiles(dir string, port int) error {
	file := func(name string) string { return filepath.Join(dir, name) }
	authority, err := authorityIn(dir)
	if err != nil {
		return err
	}
	if _, err := keyIn(file("service-accounts.key")); err != nil {
		return err
	}
	if err := unlessThere(file("server.crt"), func() error {
		return authority.issue(file("server"), &x509.Certificate{
			Subject:     pkix.Name{CommonName: "kube-apiserver"},
			DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
	}); err != nil {
		return err
	}
	if err := unlessThere(file("admin.crt"), func() error {
		// The group whose members RBAC does not ask.
		return authority.issue(file("admin"), clientTemplate("admin", []string{"system:masters"}))
	}); err != nil {
		return err
	}
	config, err := kubeconfig(dir, port, "admin")
	if err != nil {
		return err
	}
	return os.WriteFile(file("admin.kubeconfig"), []byte(config), 0o600)
}

func clientTemplate(user string, groups []string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// clientKubeconfig issues a client certificate for a user and puts it into a kubeconfig.
func clientKubeconfig(dir, user string, groups []string) (string, error) {
	if user == "" {
		return "", errors.New("--user is missing")
	}
	authority, err := authorityIn(dir)
	if err != nil {
		return "", err
	}
	port, err := choosePort(dir, 0)
	if err != nil {
		return "", err
	}
	name := "user-" + fmt.Sprintf("%x", sha256.Sum256([]byte(user+"\x00"+strings.Join(groups, ","))))[:16]
	if err := authority.issue(filepath.Join(dir, name), clientTemplate(user, groups)); err != nil {
		return "", err
	}
	return kubeconfig(dir, port, name)
}

// kubeconfig is JSON, which is YAML as well; the certificates are in it, so it works from anywhere.
func kubeconfig(dir string, port int, pair string) (string, error) {
	data := map[string][]byte{}
	for _, name := range []string{"ca.crt", pair + ".crt", pair + ".key"} {
		bytes, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		data[name] = bytes
	}
	type object = map[string]any
	text, err := json.MarshalIndent(object{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []object{{"name": "test", "cluster": object{
			"server":                     fmt.Sprintf("https://127.0.0.1:%d", port),
			"certificate-authority-data": data["ca.crt"],
		}}},
		"users": []object{{"name": "client", "user": object{
			"client-certificate-data": data[pair+".crt"],
			"client-key-data":         data[pair+".key"],
		}}},
		"contexts":        []object{{"name": "test", "context": object{"cluster": "test", "user": "client"}}},
		"current-context": "test",
	}, "", "  ")
	return string(text), err
}

// How long the API server takes a token after its end (go-jose's jwt.DefaultLeeway, which k8s.io/kubernetes
// pkg/serviceaccount/claims.go leaves as it is).
const leeway = time.Minute

// signToken makes a token of a service account as the API server itself would, except that it is refused once its
// lifetime is over, not a minute later.
func signToken(dir, namespace, name, uid string, lifetime time.Duration) (string, error) {
	key, err := keyIn(filepath.Join(dir, "service-accounts.key"))
	if err != nil {
		return "", err
	}
	end := time.Now().Add(lifetime - leeway)
	begin := end.Add(-time.Hour)
	type object = map[string]any
	claims, err := json.Marshal(object{
		"iss": issuer,
		"aud": []string{issuer},
		"sub": "system:serviceaccount:" + namespace + ":" + name,
		"iat": begin.Unix(),
		"nbf": begin.Unix(),
		"exp": end.Unix(),
		"kubernetes.io": object{
			"namespace":      namespace,
			"serviceaccount": object{"name": name, "uid": uid},
		},
	})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + encode(claims)
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", err
	}
	// RFC 7518 section 3.4: R and S as two numbers of 32 bytes.
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + encode(signature), nil
}

// authority issues the certificates of one directory.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func authorityIn(dir string) (*authority, error) {
	key, err := keyIn(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "ca.crt")
	if err := unlessThere(file, func() error {
		template := &x509.Certificate{
			Subject:               pkix.Name{CommonName: "test cluster"},
			IsCA:                  true,
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		}
		return writeCertificate(file, template, template, key.Public(), key)
	}); err != nil {
		return nil, err
	}
	block, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(block)
	return &authority{certificate, key}, err
}

// issue writes path.key and path.crt.
func (a *authority) issue(path string, template *x509.Certificate) error {
	key, err := keyIn(path + ".key")
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	return writeCertificate(path+".crt", template, a.certificate, key.Public(), a.key)
}

func writeCertificate(file string, template, parent *x509.Certificate, public crypto.PublicKey, key *ecdsa.PrivateKey) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template.SerialNumber = serial
	// An hour back: a clock that steps must not make the cluster's own certificates invalid.
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	bytes, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return err
	}
	return writePEM(file, "CERTIFICATE", bytes)
}

// keyIn reads a private key, or makes it.
func keyIn(file string) (*ecdsa.PrivateKey, error) {
	if err := unlessThere(file, func() error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		bytes, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return err
		}
		return writePEM(file, "EC PRIVATE KEY", bytes)
	}); err != nil {
		return nil, err
	}
	bytes, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	return x509.ParseECPrivateKey(bytes)
}

func readPool(file string) (*x509.CertPool, error) {
	bytes, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bytes) {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	return pool, nil
}

func unlessThere(file string, make func() error) error {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return make()
	}
	return err
}

func readPEM(file string) ([]byte, error) {
	bytes, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(bytes)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM", file)
	}
	return block.Bytes, nil
}

// writePEM writes beside and renames: a start that is killed leaves no half of a key.
func writePEM(file, kind string, bytes []byte) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes})
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
