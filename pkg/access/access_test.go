package access

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/stores"
)

// caPEM is a certificate that nobody has the key of.
const caPEM = `-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIULtO7TuOhddSP8wlwiHoqJK1m4wswCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGYSB0ZXN0MCAXDTI2MTEyMjIwMjMxNVoYDzIxMjYxMDI5MjAy
MzE1WjARMQ8wDQYDVQQDDAZhIHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AATeGrOPnLfnQwQ4IvChPRvdCm+y5xwRWegDQpOie6z0yj5MmOTsb3+MUxR5QXzk
0217IcpkpJTjbvVB+OCFQIGdo1MwUTAdBgNVHQ4EFgQUOtS0dpOxA/pghswlyXBh
kkH3YZ0wHwYDVR0jBBgwFoAUOtS0dpOxA/pghswlyXBhkkH3YZ0wDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiAkx3K8dgJukybW+s8HAvkzJqypbwOr
3IjTR9utvMMW3gIhAPEqj/nnUfHajIS5xxQINUPc3GQUHBo+l7eLe+SvHu+y
-----END CERTIFICATE-----
`

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	must(t, os.WriteFile(file, []byte(text), 0o600))
}

// TestLocate: each rung wins over those below it, and what is below the rung that
// wins is not read: it may be broken.
func TestLocate(t *testing.T) {
	const (
		fromKey, fromConfig, fromServers = "https://key.example.com", "https://config.example.com:8443", "https://servers.example.com"
	)
	token := apikey.New([16]byte{1}).Text()
	newLogin := func(server string) login.Login {
		l, err := login.New(server, []byte(caPEM), token)
		must(t, err)
		return l
	}
	for name, c := range map[string]struct {
		flag           string
		key, companion bool
		toml           string // of vault.path
		servers        bool
		want           string // "" is the default file
		source         config.Source
	}{
		"nothing":                            {source: config.FromDefault},
		"a flag over all, a URL":             {flag: "HTTPS://Flag.example.com/", key: true, companion: true, toml: "/broken", servers: true, want: "https://flag.example.com", source: config.FromFlag},
		"a flag over all, a file":            {flag: "/flag.db", key: true, companion: true, toml: fromConfig, servers: true, want: "/flag.db", source: config.FromFlag},
		"a machine key's login":              {key: true, companion: true, toml: fromConfig, servers: true, want: fromKey, source: FromMachineKey},
		"config.toml, a URL":                 {toml: "https://CONFIG.example.com:8443/", servers: true, want: fromConfig, source: config.FromConfig},
		"config.toml, a file":                {toml: "/config.db", servers: true, want: "/config.db", source: config.FromConfig},
		"config.toml for a plain key":        {key: true, toml: "/config.db", servers: true, want: "/config.db", source: config.FromConfig},
		"servers.toml":                       {servers: true, want: fromServers, source: FromServers},
		"servers.toml is not for plain keys": {key: true, servers: true, source: config.FromDefault},
	} {
		t.Run(name, func(t *testing.T) {
			home, err := filepath.EvalSymlinks(t.TempDir())
			must(t, err)
			for _, v := range []string{"XDG_CONFIG_HOME", "XDG_DATA_HOME", "CREDENTIALS_DIRECTORY"} {
				t.Setenv(v, "")
			}
			t.Setenv("HOME", home)
			toml, servers := filepath.Join(home, ".config/ov/config.toml"), filepath.Join(home, ".config/ov/servers.toml")
			key := ""
			if c.key {
				key = filepath.Join(home, "a.key")
			}
			if c.companion {
				must(t, login.WriteCompanion(key, newLogin(fromKey)))
			}
			if c.toml != "" {
				write(t, toml, "[vault]\npath = '"+c.toml+"'\n")
			}
			if c.servers {
				_, err := login.Save(newLogin(fromServers), true)
				must(t, err)
			}
			// What must not be looked at is broken.
			if c.source == config.FromFlag || c.source == FromMachineKey {
				write(t, toml, "broken")
			}
			if c.source != FromServers && c.servers {
				write(t, servers, "broken")
			}
			got, err := Locate(c.flag, key)
			must(t, err)
			want := config.Choice{Value: c.want, Source: c.source}
			switch c.source {
			case config.FromDefault:
				want.Value = filepath.Join(home, ".local/share/ov/vault.db")
			case config.FromConfig:
				want.File = toml
			case FromServers:
				want.File = servers
			case FromMachineKey:
				want.File = key + ".login"
			}
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			// The agent knows the same, but for flags and config.toml.
			if c.flag == "" && c.toml == "" {
				if address, err := stores.Default(key); address != want.Value || err != nil {
					t.Errorf("the agent has %s, %v", address, err)
				}
			}
		})
	}
}

// Addresses of one vault are the same however they are written.
func TestSame(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "")
	must(t, os.Link(a, b))
	for _, c := range []struct {
		a, b string
		want bool
	}{{a, a, true}, {a, b, true}, {a, filepath.Join(dir, "c"), false}, {"https://h", "https://h", true}, {"https://h", "https://i", false}, {"https://h", a, false}} {
		if same(c.a, c.b) != c.want {
			t.Errorf("%s, %s: %v", c.a, c.b, !c.want)
		}
	}
}
