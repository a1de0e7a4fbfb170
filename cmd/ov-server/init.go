package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/server"
)

// initJSON is what init prints with --json.
type initJSON struct {
	Data          string     `json:"data"`
	CA            string     `json:"ca,omitempty"`
	CAFingerprint string     `json:"ca_sha256,omitempty"`
	CAExpires     *time.Time `json:"ca_expires,omitempty"`
	Certificate   string     `json:"certificate"`
	Hosts         []string   `json:"hosts"`
	Expires       time.Time  `json:"expires"`
}

func newInitCmd(g *globals) *cobra.Command {
	var hosts []string
	var certFile, keyFile string
	var renew, asJSON bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the data directory, a certificate authority and a server certificate",
		Long: `init makes the data directory and in it a certificate authority of the
server's own, and the certificate that it has signed. Clients trust the
authority (` + "`ov auth login --ca`" + `), not the certificate, which holds for a year.
Nothing that is there is ever overwritten.

With --renew it makes a new certificate from the authority that is there, for
the hosts of the one before unless --host names others. A running server takes
it up when it gets SIGHUP: systemctl reload ov-server.

With a certificate of your own it makes no authority: it checks that the server
can use it.`,
		Example: `  ov-server init --host vault.example.com
  ov-server init --renew`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := g.dir()
			if err != nil {
				return err
			}
			if err := become(dir); err != nil {
				return err
			}
			made, err := initialize(dir, hosts, certFile, keyFile, renew)
			if err != nil {
				return err
			}
			if asJSON {
				return command.PrintJSON(cmd.OutOrStdout(), made)
			}
			sayInit(cmd, g, made, renew)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&hosts, "host", nil, "DNS name or IP address by which clients call the server, besides localhost (default: the host name)")
	f.BoolVar(&renew, "renew", false, "make a new certificate from the authority that is there")
	f.StringVar(&certFile, "tls-cert", "", "a certificate of your own, with those that lead to its CA: PEM")
	f.StringVar(&keyFile, "tls-key", "", "its private key: PEM")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	for _, other := range []string{"host", "renew"} {
		cmd.MarkFlagsMutuallyExclusive("tls-cert", other)
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func initialize(dir string, hosts []string, certFile, keyFile string, renew bool) (*initJSON, error) {
	if certFile != "" {
		c, err := server.LoadCertificate(certFile, keyFile)
		if err != nil {
			return nil, err
		}
		return &initJSON{Data: dir, Certificate: certFile, Hosts: c.Hosts(), Expires: c.NotAfter()}, server.OpenDir(dir)
	}
	do := server.Init
	if renew {
		do = server.Renew
	}
	i, err := do(dir, hosts, time.Now())
	if err != nil {
		return nil, err
	}
	return &initJSON{
		Data: dir, CA: i.CA, CAFingerprint: i.CAFingerprint, CAExpires: &i.CAExpires,
		Certificate: i.Certificate, Hosts: i.Hosts, Expires: i.Expires,
	}, nil
}

func sayInit(cmd *cobra.Command, g *globals, made *initJSON, renew bool) {
	out, talk := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if made.CA != "" {
		fmt.Fprintf(out, "CA           %s\n", safefile.Quote(made.CA))
		fmt.Fprintf(out, "SHA-256      %s\n", made.CAFingerprint)
	}
	fmt.Fprintf(out, "certificate  %s\n", safefile.Quote(made.Certificate))
	fmt.Fprintf(out, "for          %s\n", strings.Join(made.Hosts, ", "))
	fmt.Fprintf(out, "until        %s\n", made.Expires.Format(time.DateOnly))
	data := g.dataFlag()
	switch {
	case renew:
		fmt.Fprintln(talk, "next: sudo systemctl reload ov-server, or send the server SIGHUP")
	case made.CA == "":
		fmt.Fprintf(talk, "next: start it with --tls-cert and --tls-key, and ov-server account create NAME%s\n", data)
	case os.Geteuid() == 0 && data == "":
		fmt.Fprintln(talk, "next: sudo systemctl enable --now ov-server, and ov-server account create NAME")
	default:
		fmt.Fprintf(talk, "next: ov-server serve%s, and ov-server account create NAME%[1]s\n", data)
	}
}
