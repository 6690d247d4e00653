// Dials a KMS plugin as the envelope packages of k8s.io/apiserver do, and puts it through Status,
// Encrypt and Decrypt of both versions of the protocol. Prints one JSON object.
//
//	grpc-go SOCKET MODE
//
// MODE says what is sent as :authority:
//
//	v1.31   the path as grpc-go 1.65 derives it (percent-encoded), as Kubernetes 1.29 to 1.31 do
//	raw     the bare path, as Kubernetes 1.28 and older do
//	v1.32   localhost, as Kubernetes from 1.32 on does for KMS v2
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/kms/apis/v1beta1"
	v2 "k8s.io/kms/apis/v2"
)

const calls = 50

func main() {
	result, err := run(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(result)
}

func dial(socket, mode string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return net.DialUnix("unix", nil, &net.UnixAddr{Name: socket})
		}),
	}
	switch mode {
	case "v1.31":
	case "raw":
		options = append(options, grpc.WithAuthority(socket))
	case "v1.32":
		options = append(options, grpc.WithAuthority("localhost"))
	default:
		return nil, fmt.Errorf("no such mode: %s", mode)
	}
	return grpc.Dial(socket, options...)
}

func run(socket, mode string) (map[string]any, error) {
	connection, err := dial(socket, mode)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	kms := v2.NewKeyManagementServiceClient(connection)
	status, err := kms.Status(ctx, &v2.StatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("Status: %w", err)
	}
	// several at once, so that header blocks of many streams share one HPACK table
	var group sync.WaitGroup
	failures := make(chan error, 2*calls)
	for i := 0; i < calls; i++ {
		group.Add(2)
		go func() { defer group.Done(); failures <- roundTrip(ctx, kms, status.KeyId) }()
		go func() { defer group.Done(); failures <- roundTripV1(ctx, connection) }()
	}
	group.Wait()
	close(failures)
	for err := range failures {
		if err != nil {
			return nil, err
		}
	}
	_, err = kms.Decrypt(ctx, &v2.DecryptRequest{Ciphertext: []byte("x"), Uid: "uid", KeyId: status.KeyId})
	if err == nil {
		return nil, fmt.Errorf("nonsense was decrypted")
	}
	return map[string]any{"version": status.Version, "healthz": status.Healthz, "key_id": status.KeyId}, nil
}

func roundTrip(ctx context.Context, kms v2.KeyManagementServiceClient, keyID string) error {
	plaintext := make([]byte, 32)
	_, _ = rand.Read(plaintext)
	sealed, err := kms.Encrypt(ctx, &v2.EncryptRequest{Plaintext: plaintext, Uid: "uid"})
	if err != nil {
		return fmt.Errorf("Encrypt: %w", err)
	}
	if sealed.KeyId != keyID {
		return fmt.Errorf("Encrypt answered another key id than Status")
	}
	opened, err := kms.Decrypt(ctx, &v2.DecryptRequest{
		Ciphertext: sealed.Ciphertext, Uid: "uid", KeyId: sealed.KeyId, Annotations: sealed.Annotations,
	})
	if err != nil {
		return fmt.Errorf("Decrypt: %w", err)
	}
	if !bytes.Equal(opened.Plaintext, plaintext) {
		return fmt.Errorf("Decrypt answered another plaintext")
	}
	return nil
}

func roundTripV1(ctx context.Context, connection *grpc.ClientConn) error {
	kms := v1.NewKeyManagementServiceClient(connection)
	if _, err := kms.Version(ctx, &v1.VersionRequest{Version: "v1beta1"}); err != nil {
		return fmt.Errorf("v1 Version: %w", err)
	}
	plain := make([]byte, 32)
	_, _ = rand.Read(plain)
	sealed, err := kms.Encrypt(ctx, &v1.EncryptRequest{Version: "v1beta1", Plain: plain})
	if err != nil {
		return fmt.Errorf("v1 Encrypt: %w", err)
	}
	opened, err := kms.Decrypt(ctx, &v1.DecryptRequest{Version: "v1beta1", Cipher: sealed.Cipher})
	if err != nil {
		return fmt.Errorf("v1 Decrypt: %w", err)
	}
	if !bytes.Equal(opened.Plain, plain) {
		return fmt.Errorf("v1 Decrypt answered another plaintext")
	}
	return nil
}
