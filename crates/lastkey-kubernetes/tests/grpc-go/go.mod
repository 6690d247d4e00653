// A grpc-go client that dials like a kube-apiserver, with the grpc-go that Kubernetes 1.31 has.
module lastkey.test/grpc-go

go 1.22.0

require (
	google.golang.org/grpc v1.65.0
	k8s.io/kms v0.31.0
)

require (
	github.com/gogo/protobuf v1.3.2 // indirect
	golang.org/x/net v0.26.0 // indirect
	golang.org/x/sys v0.21.0 // indirect
	golang.org/x/text v0.16.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20240701130421-f6361c86f094 // indirect
	google.golang.org/protobuf v1.34.2 // indirect
)
