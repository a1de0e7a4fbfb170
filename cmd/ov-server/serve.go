package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/server"
	"github.com/opaquevault/ov/pkg/version"
)

func newServeCmd(g *globals) *cobra.Command {
	d := &server.Daemon{Version: version.String()}
	var format string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve clients",
		Long: `serve answers clients over TLS 1.3 with the key exchange X25519MLKEM768, and no
other: gRPC, gRPC-Web and JSON over HTTPS. Records are kept in the data
directory or, with a database URL, in PostgreSQL: one in the file that
--database-url-file names, in ` + databaseVariable + `, or in the systemd
credential ` + databaseCredential + `.

SIGTERM ends it once the calls in flight are done, at most 20 seconds later; a
second one at once. SIGHUP makes it read its certificate again.`,
		Example: `  ov-server serve
  ov-server serve --listen 10.0.0.5:443 --metrics 127.0.0.1:9464
  ov-server serve --database-url-file /etc/ov-server/database-url`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := g.dir()
			if err != nil {
				return err
			}
			dsn, err := g.database.find()
			if err != nil {
				return err
			}
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			o := &slog.HandlerOptions{Level: level}
			switch format {
			case "text":
				d.Log = slog.New(slog.NewTextHandler(os.Stderr, o))
			case "json":
				d.Log = slog.New(slog.NewJSONHandler(os.Stderr, o))
			default:
				return command.Misuse(cmd, fmt.Errorf("--log-format is text or json, not %.20q", format))
			}
			d.Dir, d.Open = dir, opener(dir, dsn)
			return d.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.Listen, "listen", ":8443", "address to serve clients on, unless systemd passes a socket")
	f.StringVar(&d.Metrics, "metrics", "", "address to serve metrics (Prometheus) and GET /livez and /readyz on, without TLS: keep it private (default: none)")
	f.StringVar(&d.CertFile, "tls-cert", "", "a certificate of your own in place of init's, with those that lead to its CA: PEM")
	f.StringVar(&d.KeyFile, "tls-key", "", "its private key: PEM")
	f.BoolVar(&d.Reflection, "reflection", false, "tell clients the API (gRPC reflection)")
	f.StringVar(&format, "log-format", "text", "text or json")
	f.BoolVar(&verbose, "verbose", false, "log every call: what kind of call it was, never a name, key or value")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	g.database.add(cmd)
	return cmd
}
