package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// Telemetry counts what a server does and, if the environment names a collector,
// traces it. No label, attribute or log line of it has a name, a key or a value:
// they are about RPCs and their codes.
type Telemetry struct {
	registry *prometheus.Registry
	traces   *sdktrace.TracerProvider // nil: none
	tracer   trace.Tracer

	requests       *prometheus.CounterVec
	seconds        *prometheus.HistogramVec
	inFlight       prometheus.Gauge
	refused        *prometheus.CounterVec
	storageErrors  *prometheus.CounterVec
	storageSeconds *prometheus.HistogramVec
}

// Spans are exported over OTLP/HTTP when one of these is set; that package reads
// them, and the others that begin with OTEL_EXPORTER_OTLP_, by itself.
// https://opentelemetry.io/docs/specs/otel/protocol/exporter/
var (
	otlpEndpoints = []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"}
	otlpProtocols = []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"}
)

// NewTelemetry makes the telemetry of one server, to be closed after it.
func NewTelemetry(ctx context.Context, version string, log *slog.Logger) (*Telemetry, error) {
	if firstEnv(otlpEndpoints) == "" {
		return newTelemetry(version, nil)
	}
	if p := firstEnv(otlpProtocols); p != "" && p != "http/protobuf" {
		return nil, hint.Errorf("set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, and an endpoint for it (port 4318)",
			"traces are sent by http/protobuf, not by %q", p)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Warn("traces are not being sent", "why", err.Error())
	}))
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot send traces: %w", err)
	}
	return newTelemetry(version, sdktrace.NewBatchSpanProcessor(plain{exporter}))
}

func firstEnv(names []string) string {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

func newTelemetry(version string, spans sdktrace.SpanProcessor) (*Telemetry, error) {
	const prefix = "ov_server_"
	buckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	t := &Telemetry{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "requests_total",
			Help: "Calls that were let in and have ended, by RPC and code."}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + "request_duration_seconds",
			Help: "How long these calls took.", Buckets: buckets}, []string{"method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "requests_in_flight",
			Help: "Calls that have not ended yet."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "refused_total",
			Help: "Calls that were not let in, by RPC and reason: failed API keys among them."}, []string{"method", "why"}),
		storageErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "storage_errors_total",
			Help: "Times that the storage failed, by what was asked of it."}, []string{"op"}),
		storageSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + "storage_duration_seconds",
			Help: "How long the storage took, by what was asked of it.", Buckets: buckets}, []string{"op"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "build_info",
		Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	for _, c := range []prometheus.Collector{t.requests, t.seconds, t.inFlight, t.refused, t.storageErrors, t.storageSeconds, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := t.registry.Register(c); err != nil {
			return nil, err
		}
	}
	var provider trace.TracerProvider = noop.NewTracerProvider()
	if spans != nil {
		about, err := resource.Merge(resource.NewSchemaless(
			attribute.String("service.name", "ov-server"), attribute.String("service.version", version)),
			resource.Environment())
		if err != nil {
			return nil, fmt.Errorf("cannot use OTEL_RESOURCE_ATTRIBUTES: %w", err)
		}
		t.traces = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithResource(about))
		provider = t.traces
	}
	t.tracer = provider.Tracer("github.com/opaquevault/ov/pkg/server")
	return t, nil
}

// Handler serves the metrics to Prometheus.
func (t *Telemetry) Handler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second})
}

// Watch adds what is asked when the metrics are: the number of accounts, and
// when the certificate expires.
func (t *Telemetry) Watch(accounts store.Accounts, expires func() time.Time) error {
	count := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ov_server_accounts",
		Help: "Accounts that there are, or -1 if the storage does not answer."}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		list, err := accounts.List(ctx)
		if err != nil {
			return -1
		}
		return float64(len(list))
	})
	expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ov_server_certificate_expiry_timestamp_seconds",
		Help: "When the server's certificate expires, in Unix time."}, func() float64 { return float64(expires().Unix()) })
	return errors.Join(t.registry.Register(count), t.registry.Register(expiry))
}

// Close sends the spans that were not sent yet, until ctx ends.
func (t *Telemetry) Close(ctx context.Context) error {
	if t.traces == nil {
		return nil
	}
	return t.traces.Shutdown(ctx)
}

// Interceptors returns those that count and trace calls.
func (t *Telemetry) Interceptors() ([]connect.Interceptor, error) {
	list := []connect.Interceptor{counter{t}}
	if t.traces == nil {
		return list, nil
	}
	// A client's own trace is not taken up: anybody could say anything there.
	tracing, err := otelconnect.NewInterceptor(otelconnect.WithTracerProvider(t.traces), otelconnect.WithoutMetrics())
	if err != nil {
		return nil, err
	}
	return append(list, tracing), nil
}

// Refused counts a call that was not let in: Options.Refused.
func (t *Telemetry) Refused(procedure string, why Refusal) {
	t.refused.WithLabelValues(method(procedure), string(why)).Inc()
}

// method is the short name of an RPC, such as Vault/Read, or "none". What is
// asked for and is no RPC never gets here: a client cannot make up labels.
func method(procedure string) string {
	if procedure == "" {
		return "none"
	}
	return strings.TrimPrefix(procedure, "/ov.vault.v1.")
}

// counter is the interceptor that counts calls.
type counter struct{ *Telemetry }

func (c counter) begin(procedure string) func(error) {
	start := time.Now()
	c.inFlight.Inc()
	return func(err error) {
		code := "ok"
		if err != nil {
			code = connect.CodeOf(err).String()
		}
		c.inFlight.Dec()
		c.requests.WithLabelValues(method(procedure), code).Inc()
		c.seconds.WithLabelValues(method(procedure)).Observe(time.Since(start).Seconds())
	}
}

// WrapUnary implements connect.Interceptor.
func (c counter) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		end := c.begin(req.Spec().Procedure)
		err = errPanicked
		defer func() { end(err) }()
		res, err = next(ctx, req)
		return res, err
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (c counter) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		end := c.begin(conn.Spec().Procedure)
		err = errPanicked
		defer func() { end(err) }()
		err = next(ctx, conn)
		return err
	}
}

// WrapStreamingClient implements connect.Interceptor: a server has none.
func (c counter) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// errPanicked is how a call ended that did not return.
var errPanicked = connect.NewError(connect.CodeInternal, errors.New("panic"))

// Accounts returns the storage, counted and traced.
func (t *Telemetry) Accounts(a store.Accounts) store.Accounts { return countedAccounts{a, t} }

type countedAccounts struct {
	store.Accounts
	t *Telemetry
}

func (c countedAccounts) Store(id store.AccountID) store.Store {
	return countedStore{c.Accounts.Store(id), c.t}
}

func (c countedAccounts) Create(ctx context.Context, a store.Account) error {
	return c.t.storage(ctx, "create", func(ctx context.Context) error { return c.Accounts.Create(ctx, a) })
}

func (c countedAccounts) List(ctx context.Context) (list []store.Account, err error) {
	err = c.t.storage(ctx, "list", func(ctx context.Context) error {
		list, err = c.Accounts.List(ctx)
		return err
	})
	return list, err
}

func (c countedAccounts) Ping(ctx context.Context) error {
	return c.t.storage(ctx, "ping", c.Accounts.Ping)
}

type countedStore struct {
	store.Store
	t *Telemetry
}

func (c countedStore) View(ctx context.Context, fn func(store.Reader) error) error {
	var own error
	return c.t.storageOr(ctx, "view", &own, func(ctx context.Context) error {
		return c.Store.View(ctx, func(r store.Reader) error {
			own = fn(r)
			return own
		})
	})
}

func (c countedStore) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	var own error
	return c.t.storageOr(ctx, "update", &own, func(ctx context.Context) error {
		return c.Store.Update(ctx, func(r store.Reader) (b store.Batch, err error) {
			b, own = fn(r)
			return b, own
		})
	})
}

func (t *Telemetry) storage(ctx context.Context, op string, do func(context.Context) error) error {
	var none error
	return t.storageOr(ctx, op, &none, do)
}

// storageOr counts and traces do. An error that the caller's own function has
// returned (own) is no failure of the storage, unless it says that it is.
func (t *Telemetry) storageOr(ctx context.Context, op string, own *error, do func(context.Context) error) error {
	start := time.Now()
	ctx, span := t.tracer.Start(ctx, "storage "+op)
	defer span.End()
	err := do(ctx)
	t.storageSeconds.WithLabelValues(op).Observe(time.Since(start).Seconds())
	if storageFailed(err, *own) {
		t.storageErrors.WithLabelValues(op).Inc()
	}
	return err
}

func storageFailed(err, own error) bool {
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, store.ErrNoAccount), errors.Is(err, store.ErrAccountExists):
		return false
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrBusy), errors.Is(err, store.ErrDamaged):
		return true
	}
	return own == nil
}

// plain hands spans on without anything that an error, a panic or a client could
// have put a name into.
type plain struct{ sdktrace.SpanExporter }

// ExportSpans implements sdktrace.SpanExporter.
func (p plain) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	list := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		list[i] = plainSpan{s}
	}
	return p.SpanExporter.ExportSpans(ctx, list)
}

type plainSpan struct{ sdktrace.ReadOnlySpan }

// plainAttributes are of the RPC's name and its code.
var plainAttributes = map[attribute.Key]bool{
	"rpc.system.name": true, "rpc.method": true, "rpc.response.status_code": true, "error.type": true,
}

func (s plainSpan) Attributes() []attribute.KeyValue {
	var list []attribute.KeyValue
	for _, kv := range s.ReadOnlySpan.Attributes() {
		if plainAttributes[kv.Key] {
			list = append(list, kv)
		}
	}
	return list
}

func (s plainSpan) Events() []sdktrace.Event { return nil }

func (s plainSpan) Links() []sdktrace.Link { return nil }

func (s plainSpan) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}
