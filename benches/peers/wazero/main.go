// Command wazero-server [FLAGS] MODULE.wasm... is a peer to measure Ringfence against: a gRPC server that runs
// WebAssembly on wazero, written as somebody would who knows both and wants it fast. It answers Run and RunStream of
// ringfence.v1.SandboxService, so that one client calls either. Of a RunSpec it honours `digest`, where it has several
// modules, and `args`; the rest it ignores, where Ringfence would refuse. It limits time only: no output, no queue.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// wire is the codec: messages are bytes already. Answers go out in the buffers that they are in, output uncopied.
type wire struct{}

func (wire) Name() string                           { return "proto" }
func (wire) Marshal(v any) (mem.BufferSlice, error) { return v.(mem.BufferSlice), nil }
func (wire) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// values returns every value that a message has for a field that is bytes, a string or a message.
func values(message []byte, field protowire.Number) (found [][]byte) {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeField(message)
		if size < 0 {
			return nil
		}
		if number == field && kind == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(message)
			value, _ := protowire.ConsumeBytes(message[tag:])
			found = append(found, value)
		}
		message = message[size:]
	}
	return found
}

// number appends a field that is a number; head what comes before the bytes of one that is bytes; text both.
func number(b []byte, field protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), value)
}
func head(b []byte, field protowire.Number, size int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(size))
}
func text[T string | []byte](b []byte, field protowire.Number, value T) []byte {
	return append(head(b, field, len(value)), value...)
}

type server struct {
	runtime wazero.Runtime
	modules map[string]wazero.CompiledModule // by digest
	last    string                           // the last one's digest; where it is the only one, it is always meant
	timeout time.Duration
}

// find receives a RunRequest or a RunStreamRequest, which are alike.
func (s *server) find(receive func(any) error) (digest string, args []string, err error) {
	var request []byte
	if err = receive(&request); err != nil {
		return "", nil, err
	}
	for _, spec := range values(request, 1) {
		for _, value := range values(spec, 2) {
			digest = string(value)
		}
		for _, value := range values(spec, 4) {
			args = append(args, string(value))
		}
	}
	if len(s.modules) == 1 {
		digest = s.last
	}
	if s.modules[digest] == nil {
		err = status.Errorf(codes.NotFound, "no module %q", digest)
	}
	return digest, args, err
}

// execute runs the guest to its end and returns a RunResult.
func (s *server) execute(ctx context.Context, digest string, args []string, stdout, stderr io.Writer) []byte {
	// Anonymous, so that a module can have many instances at once. wazero's own randomness is always the same bytes,
	// which no server would give out, and its clocks are fake; Ringfence gives real ones by default.
	config := wazero.NewModuleConfig().WithName("").WithArgs(args...).WithStdout(stdout).WithStderr(stderr).
		WithRandSource(rand.Reader).WithSysWalltime().WithSysNanotime().WithSysNanosleep()
	// Memories are recycled: from Go's heap each would be new, and the collector twice as busy.
	ctx = experimental.WithMemoryAllocator(ctx, experimental.MemoryAllocatorFunc(func(_, _ uint64) experimental.LinearMemory {
		memory, _ := memories.Get().(*recycled)
		if memory == nil {
			memory = &recycled{}
		}
		memory.bytes = memory.bytes[:0]
		return memory
	}))
	instance, err := s.runtime.InstantiateModule(ctx, s.modules[digest], config) // calls `_start` too
	if instance != nil {
		_ = instance.Close(ctx)
	}
	const exited, trapped, timedOut = 1, 2, 6 // of the enum Outcome
	result := text(nil, 2, digest)
	var exit *sys.ExitError
	switch ended := errors.As(err, &exit); {
	case err == nil:
		return number(number(result, 3, exited), 4, 0)
	case !ended:
		return text(number(result, 3, trapped), 5, text(text(nil, 1, "other"), 2, err.Error()))
	case ctx.Err() != nil && errors.Is(err, context.DeadlineExceeded):
		return number(result, 3, timedOut) // Where the caller cancelled, nobody sees the result.
	default:
		return number(number(result, 3, exited), 4, uint64(exit.ExitCode()))
	}
}

func (s *server) run(_ any, ctx context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	digest, args, err := s.find(receive)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	result := s.execute(ctx, digest, args, &stdout, &stderr)
	before, after := head(text(nil, 1, result), 2, stdout.Len()), text(nil, 3, stderr.Bytes())
	return mem.BufferSlice{mem.SliceBuffer(before), mem.SliceBuffer(stdout.Bytes()), mem.SliceBuffer(after)}, nil
}

// chunkSize is the most that one StreamEvent may carry. gRPC gives chunks back once they are on the wire; its own pool
// would hand out 1 MiB for each.
const chunkSize = 64 << 10

var chunks = mem.NewTieredBufferPool(chunkSize)

// pipe is between a guest that writes and a stream that sends. Its channel has room for one chunk, and the guest takes
// that back to add to it as long as it is not full: small writes gather while the chunk before is sent, none waits for
// another write to be sent, and a guest that is faster than its reader waits.
type pipe struct {
	ctx   context.Context
	ready chan *[]byte
}

func (p pipe) Write(data []byte) (written int, err error) {
	for written < len(data) {
		var chunk *[]byte
		select {
		case chunk = <-p.ready:
		default:
		}
		if chunk != nil && len(*chunk) == chunkSize {
			p.ready <- chunk // There is room: nobody else puts chunks in.
			chunk = nil
		}
		if chunk == nil {
			chunk = chunks.Get(chunkSize)
			*chunk = (*chunk)[:0]
		}
		n := min(len(data)-written, chunkSize-len(*chunk))
		*chunk = append(*chunk, data[written:written+n]...)
		written += n
		select {
		case p.ready <- chunk:
		case <-p.ctx.Done():
			return written, p.ctx.Err()
		}
	}
	return written, nil
}

func (s *server) runStream(_ any, stream grpc.ServerStream) error {
	digest, args, err := s.find(stream.RecvMsg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(stream.Context(), s.timeout)
	defer cancel()
	p := pipe{ctx, make(chan *[]byte, 1)}
	seq := uint64(0)
	send := func(field protowire.Number, data mem.Buffer) {
		before := mem.SliceBuffer(head(number(nil, 2, seq), field, data.Len()))
		if err = stream.SendMsg(mem.BufferSlice{before, data}); err != nil {
			cancel() // The reader is gone, and so the guest goes.
		}
		seq++
	}
	send(4, mem.SliceBuffer(text(nil, 1, digest)))
	var result []byte
	go func() {
		result = s.execute(ctx, digest, args, p, io.Discard)
		close(p.ready)
	}()
	for chunk := range p.ready {
		send(5, mem.NewBuffer(chunk, chunks))
	}
	send(8, mem.SliceBuffer(result))
	return err
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	interruptible := flag.Bool("interruptible", true, "end guests at their timeout, which costs them checks in loops")
	timeout := flag.Duration("timeout", 30*time.Second, "wall time of a run")
	flag.Parse()
	ctx := context.Background()
	s := &server{timeout: *timeout, modules: map[string]wazero.CompiledModule{}}
	s.runtime = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().
		WithCompilationCache(wazero.NewCompilationCache()).WithCloseOnContextDone(*interruptible))
	wasi_snapshot_preview1.MustInstantiate(ctx, s.runtime)
	for _, path := range flag.Args() {
		code := must(os.ReadFile(path))
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256(code))
		s.modules[digest] = must(s.runtime.CompileModule(ctx, code))
		fmt.Printf("module=%s %s\n", digest, path)
		s.last = digest
	}
	g := grpc.NewServer(grpc.ForceServerCodecV2(wire{}))
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: "ringfence.v1.SandboxService",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Run", Handler: s.run}},
		Streams:     []grpc.StreamDesc{{StreamName: "RunStream", Handler: s.runStream, ServerStreams: true}},
	}, s)
	listener := must(net.Listen("tcp", *listen))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	go func() { must(0, g.Serve(listener)) }()
	fmt.Printf("address=%s\n", listener.Addr())
	<-stop
	time.AfterFunc(5*time.Second, func() { os.Exit(1) }) // Guests that cannot be interrupted hold up no longer.
	g.GracefulStop()
}

// memories are those that no guest has now.
var memories sync.Pool

// recycled is a linear memory that the next guest gets, zeroed as far as it has grown.
type recycled struct{ bytes []byte }

// Reallocate grows it; what is new is zero.
func (m *recycled) Reallocate(size uint64) []byte {
	had := len(m.bytes)
	if uint64(cap(m.bytes)) >= size {
		m.bytes = m.bytes[:size]
		clear(m.bytes[had:])
	} else {
		m.bytes = append(m.bytes, make([]byte, size-uint64(had))...)
	}
	return m.bytes
}

// Free hands it to the next.
func (m *recycled) Free() { memories.Put(m) }
