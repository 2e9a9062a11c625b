// Drives a daemon with grpc-go and no file of its own. Usage: generic TARGET
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/golang/protobuf/proto"
	"github.com/golang/protobuf/ptypes/empty"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func check(ok bool, what interface{}) {
	if !ok {
		fmt.Fprintln(os.Stderr, what)
		os.Exit(1)
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := grpc.DialContext(ctx, os.Args[1], grpc.WithInsecure(), grpc.WithBlock())
	check(err == nil, err)

	health := healthpb.NewHealthClient(conn)
	checked, err := health.Check(ctx, &healthpb.HealthCheckRequest{})
	check(err == nil && checked.Status == healthpb.HealthCheckResponse_SERVING, err)
	_, err = health.Check(ctx, &healthpb.HealthCheckRequest{Service: "nothing"})
	refused(err, codes.NotFound, "SERVICE_NOT_FOUND", "service", "nothing")
	watch, err := health.Watch(ctx, &healthpb.HealthCheckRequest{Service: "nothing"})
	check(err == nil, err)
	state, err := watch.Recv()
	check(err == nil && state.Status == healthpb.HealthCheckResponse_SERVICE_UNKNOWN, err)

	// A message without fields asks for nothing.
	run := "/ringfence.v1.SandboxService/Run"
	err = conn.Invoke(ctx, run, &empty.Empty{}, &empty.Empty{})
	refused(err, codes.InvalidArgument, "SPEC_INVALID", "field", "spec")
	fmt.Println("interop ok")
}

// The error says why, by what every client has.
func refused(err error, code codes.Code, reason, key, value string) {
	told := status.Convert(err)
	check(told.Code() == code, err)
	for _, detail := range told.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			check(info.Domain == "ringfence", info)
			check(info.Metadata[key] == value, info)
			// Its field 1, which was called otherwise once.
			check(proto.Size(info) > len(reason), info)
			check(firstField(info) == reason, info)
			return
		}
	}
	check(false, told.Details())
}

func firstField(info *errdetails.ErrorInfo) string {
	bytes, err := proto.Marshal(info)
	check(err == nil && len(bytes) > 2 && bytes[0] == 10, err)
	return string(bytes[2 : 2+int(bytes[1])])
}
