package detection

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// A clean is a kind of text without a secret in it. Each text has some 60 to
// 120 lines, as a file or a command's output of a screen or two has.
type clean struct {
	name, path string
	write      func(r random) string
}

// repeat joins n pieces.
func repeat(n int, piece func() string) string {
	var b strings.Builder
	for range n {
		b.WriteString(piece())
	}
	return b.String()
}

// choose joins n pieces, each one of several.
func choose(r random, n int, pieces ...func() string) string {
	return repeat(n, func() string { return pick(r, pieces)() })
}

func (r random) ident() string {
	return name(r.word() + " " + r.word() + " " + pick(r, []string{"handler", "factory", "token", "key", "auth", "provider", "secret", "config", "access", "id"})).camel()
}

func (r random) integrity() string { return "sha512-" + r.base64(64) }

var cleans = []clean{
	{"package-lock.json", "package-lock.json", func(r random) string {
		return "{\n  \"name\": \"web\",\n  \"lockfileVersion\": 3,\n  \"packages\": {\n" + repeat(16, func() string {
			p, v := r.slug(), r.version()
			return fmt.Sprintf("    \"node_modules/%s\": {\n      \"version\": %q,\n      \"resolved\": \"https://registry.npmjs.org/%[1]s/-/%[1]s-%[2]s.tgz\",\n      \"integrity\": %[3]q,\n      \"license\": \"MIT\"\n    },\n", p, v, r.integrity())
		}) + "  }\n}\n"
	}},
	{"yarn.lock", "yarn.lock", func(r random) string {
		return repeat(16, func() string {
			p, v := r.slug(), r.version()
			return fmt.Sprintf("%s@^%s:\n  version \"%[2]s\"\n  resolved \"https://registry.yarnpkg.com/%[1]s/-/%[1]s-%[2]s.tgz#%[3]s\"\n  integrity %[4]s\n\n", p, v, r.hex(40), r.integrity())
		})
	}},
	{"pnpm-lock.yaml", "pnpm-lock.yaml", func(r random) string {
		return "lockfileVersion: '9.0'\npackages:\n" + repeat(25, func() string {
			return fmt.Sprintf("\n  %s@%s:\n    resolution: {integrity: %s}\n    engines: {node: '>=18'}\n", pick(r, []string{r.slug(), "js-tokens", "@aws-sdk/token-providers", "auth-header", "api-key-middleware", "is-secret"}), r.version(), r.integrity())
		})
	}},
	{"go.sum", "go.sum", func(r random) string {
		return repeat(40, func() string {
			m := "github.com/" + r.word() + "/" + pick(r, []string{r.slug(), "go-auth", "keyring", "secrets", "access-token"})
			v := r.version()
			return fmt.Sprintf("%s v%s h1:%s\n%[1]s v%[2]s/go.mod h1:%[4]s\n", m, v, r.base64(32), r.base64(32))
		})
	}},
	{"Cargo.lock", "Cargo.lock", func(r random) string {
		return repeat(14, func() string {
			return fmt.Sprintf("[[package]]\nname = %q\nversion = %q\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = %q\n\n", pick(r, []string{r.slug(), "secrecy", "keyring", "token-stream"}), r.version(), r.hex(64))
		})
	}},
	{"poetry.lock", "poetry.lock", func(r random) string {
		return repeat(8, func() string {
			p, v := r.slug(), r.version()
			return fmt.Sprintf("[[package]]\nname = %q\nversion = %q\noptional = false\npython-versions = \">=3.9\"\nfiles = [\n    {file = \"%[1]s-%[2]s-py3-none-any.whl\", hash = \"sha256:%[3]s\"},\n    {file = \"%[1]s-%[2]s.tar.gz\", hash = \"sha256:%[4]s\"},\n]\n\n", p, v, r.hex(64), r.hex(64))
		})
	}},
	{"composer.lock", "composer.lock", func(r random) string {
		return repeat(7, func() string {
			return fmt.Sprintf("        {\n            \"name\": \"%s/%s\",\n            \"version\": \"v%s\",\n            \"source\": {\n                \"type\": \"git\",\n                \"reference\": %[4]q\n            },\n            \"dist\": {\n                \"reference\": %[4]q,\n                \"shasum\": \"\"\n            },\n            \"notification-url\": \"https://packagist.org/downloads/\"\n        },\n", r.word(), r.slug(), r.version(), r.hex(40))
		})
	}},
	{"requirements.txt with hashes", "requirements.txt", func(r random) string {
		return repeat(25, func() string {
			return fmt.Sprintf("%s==%s \\\n    --hash=sha256:%s \\\n    --hash=sha256:%s\n", r.slug(), r.version(), r.hex(64), r.hex(64))
		})
	}},
	{"pip freeze", "freeze.txt", func(r random) string {
		return repeat(80, func() string {
			if r.IntN(8) == 0 {
				return fmt.Sprintf("-e git+https://github.com/%s/%s.git@%s#egg=%s\n", r.word(), r.slug(), r.hex(40), r.word())
			}
			return pick(r, []string{r.slug(), "google-auth", "PyJWT", "keyring", "access-tokens"}) + "==" + r.version() + "\n"
		})
	}},
	{"npm ls", "npm.txt", func(r random) string {
		return "web@1.0.0 /srv/web\n" + repeat(80, func() string {
			return pick(r, []string{"├── ", "│ ├── ", "│ └─┬ ", "├─┬ "}) + pick(r, []string{r.slug(), "@octokit/auth-token", "js-tokens", "jsonwebtoken", "path-key", "http-auth"}) + "@" + r.version() + "\n"
		})
	}},
	{"git log", "log.txt", func(r random) string {
		return repeat(14, func() string {
			return fmt.Sprintf("commit %s\nAuthor: %s %s <%s@%s>\nDate:   Mon Mar 4 %s 2026 +0100\n\n    %s: %s\n\n", r.hex(40), r.word(), r.word(), r.word(), r.host(), r.clock(),
				r.word(), pick(r, []string{"rotate the API token every hour", "fix auth header parsing", "cache the access key by id", "say which secret is missing", "bump " + r.slug() + " to " + r.version()}))
		})
	}},
	{"git log --oneline and reflog", "log.txt", func(r random) string {
		return repeat(80, func() string {
			return r.hex(9) + " " + pick(r, []string{"HEAD@{3}: commit: ", "", "(origin/main) "}) + r.word() + ": " + pick(r, []string{"add token refresh", "rename secretKey", "mend a race", "update " + r.slug()}) + "\n"
		})
	}},
	{"git ls-tree and ls-files -s", "tree.txt", func(r random) string {
		return repeat(80, func() string {
			return "100644 blob " + r.hex(40) + "\t" + r.word() + "/" + pick(r, []string{r.slug() + ".go", "token.go", "secret_key.py", "auth.ts", "api_keys.rb"}) + "\n"
		})
	}},
	{"UUIDs and ULIDs in JSON", "response.json", func(r random) string {
		return "{\"items\":[\n" + repeat(18, func() string {
			return fmt.Sprintf("  {\"id\":%q,\"request_id\":%q,\"key\":%q,\"etag\":\"\\\"%s\\\"\",\"created_at\":\"%sT%sZ\"},\n  {\"token_id\":%q,\"api_key_id\":%q,\"secret_name\":%q},\n", r.uuid(), r.ulid(), r.word()+"/"+r.uuid(), r.hex(32), r.date(), r.clock(), r.uuid(), r.ulid(), r.slug())
		}) + "]}\n"
	}},
	{"checksums", "SHA256SUMS", func(r random) string {
		return repeat(80, func() string { return r.hex(64) + "  " + r.slug() + "_" + r.version() + "_linux_amd64.tar.gz\n" })
	}},
	{"subresource integrity", "index.html", func(r random) string {
		return "<!doctype html>\n<html><head>\n" + repeat(50, func() string {
			return fmt.Sprintf("<script src=\"https://cdn.jsdelivr.net/npm/%s@%s/dist/%s.min.js\" integrity=\"sha384-%s\" crossorigin=\"anonymous\" nonce=\"%s\"></script>\n", r.slug(), r.version(), r.word(), r.base64(48), r.base64(16))
		}) + "</head></html>\n"
	}},
	{"CSS", "style.css", func(r random) string {
		return repeat(25, func() string {
			return fmt.Sprintf(".%s__%s{color:#%s;background:#%s url(\"data:image/svg+xml;base64,%s\") no-repeat}\n.token.%s, .key-%s { border: 1px solid #%s; }\n\n", r.slug(), r.word(), r.hex(6), r.hex(3), r.base64(90), r.word(), r.word(), r.hex(6))
		})
	}},
	{"minified JavaScript", "dist/bundle.8f3a.js", func(r random) string {
		return repeat(4, func() string {
			return "!function(e,t){" + choose(r, 60,
				func() string {
					return fmt.Sprintf("var %s=e.%s||{},%s=function(t,n){return t.%s(n?%d:%d)};", r.of(letters, 2), r.ident(), r.of(letters, 2), r.ident(), r.IntN(1e6), r.IntN(1e6))
				},
				func() string {
					return fmt.Sprintf("%s.%s=%q,%s.key=%s.token;", r.of(letters, 1), r.ident(), r.slug(), r.of(letters, 1), r.of(letters, 1))
				},
				func() string {
					return fmt.Sprintf("%d:(e,t,n)=>{\"use strict\";n.d(t,{%s:()=>%s});var r=n(%d)},", r.IntN(1e5), r.of(letters, 2), r.of(letters, 2), r.IntN(1e5))
				},
				func() string {
					return fmt.Sprintf("case\"%s\":return this.%s(%s.accessKey,%q);", r.slug(), r.ident(), r.of(letters, 1), r.ident())
				},
				func() string {
					return fmt.Sprintf("o.p+%q+%q[e]+\".js\";", "static/js/"+r.word()+".", "{"+r.of(digits, 3)+":\""+r.hex(8)+"\"}")
				},
			) + "}(this,window);\n"
		})
	}},
	{"source map", "dist/app.js.map", func(r random) string {
		return "{\"version\":3,\"file\":\"app.js\",\"sources\":[" + repeat(20, func() string { return fmt.Sprintf("\"webpack://web/./src/%s/%s.ts\",", r.word(), r.ident()) }) +
			"\"\"],\"names\":[" + repeat(80, func() string { return fmt.Sprintf("%q,", r.ident()) }) + "\"\"],\"mappings\":\"" + repeat(600, func() string { return r.of(b64, r.between(4, 5)) + pick(r, []string{",", ",", ";"}) }) + "\"}\n"
	}},
	{"base64 images", "README.html", func(r random) string {
		return repeat(6, func() string {
			return fmt.Sprintf("<img alt=%q src=\"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA%s\">\n", r.slug(), r.base64(r.between(400, 900)))
		})
	}},
	{"base64 lines", "attachment.eml", func(r random) string {
		return "Content-Type: application/pdf\nContent-Transfer-Encoding: base64\nMessage-ID: <" + r.hex(32) + "@" + r.host() + ">\n\n" + repeat(90, func() string { return r.base64(57) + "\n" })
	}},
	{"public keys", "authorized_keys", func(r random) string {
		return repeat(20, func() string {
			return "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + r.of(b64, 43) + " " + r.word() + "@" + r.host() + "\n" +
				"ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ" + r.of(b64, 506) + "== " + r.word() + "\n" +
				"github.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + r.of(b64, 43) + "\n" +
				"# recipient: age1" + r.of("qpzry9x8gf2tvdw0s3jn54khce6mua7l", 58) + "\n"
		})
	}},
	{"certificates", "ca-bundle.pem", func(r random) string {
		return repeat(4, func() string {
			return "# " + r.host() + "\n-----BEGIN CERTIFICATE-----\nMIID" + r.of(b64, 60) + "\n" + repeat(18, func() string { return r.of(b64, 64) + "\n" }) + r.of(b64, 22) + "==\n-----END CERTIFICATE-----\n" +
				"-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA" + r.of(b64, 20) + "\n" + repeat(5, func() string { return r.of(b64, 64) + "\n" }) + r.of(b64, 7) + "\n-----END PUBLIC KEY-----\n"
		})
	}},
	{"JSON Web Key Set", "jwks.json", func(r random) string {
		return "{\"keys\":[\n" + repeat(10, func() string {
			return fmt.Sprintf("  {\"kty\":\"RSA\",\"use\":\"sig\",\"alg\":\"RS256\",\"kid\":%q,\n   \"e\":\"AQAB\",\"n\":%q,\n   \"x5t\":%q},\n", r.of(b64URL, 27), r.of(b64URL, 342), r.of(b64URL, 27))
		}) + "]}\n"
	}},
	{".env.example", ".env.example", func(r random) string {
		return choose(r, 80, func() string {
			return pick(r, upperNames) + "=" + pick(r, placeholders) + "\n"
		}, func() string {
			return pick(r, upperNames) + "=\"" + pick(r, placeholders) + "\"\n"
		}, func() string {
			s := settings(r, 1)[0]
			return "# " + r.slug() + "\n" + s[0] + "=" + s[1] + "\n"
		})
	}},
	{"YAML sample", "config.sample.yaml", func(r random) string {
		return "app:\n" + choose(r, 80, func() string {
			return "  " + strings.ToLower(pick(r, upperNames)) + ": " + pick(r, placeholders) + "\n"
		}, func() string {
			return "  " + pick(r, []string{"access_token_url", "api_endpoint", "auth_type", "token_endpoint", "key_prefix", "secret_name", "secretRef", "keyVaultName", "password_policy"}) + ": " + pick(r, []string{"https://" + r.host() + "/oauth2/v2.0/token", r.slug(), "projects/" + r.slug() + "/secrets/" + r.slug() + "/versions/latest", "client_secret_basic"}) + "\n"
		})
	}},
	{"JSON sample", "config.sample.json", func(r random) string {
		return "{\n" + repeat(80, func() string {
			return fmt.Sprintf("  %q: %q,\n", name(strings.ToLower(strings.ReplaceAll(pick(r, upperNames), "_", " "))).camel(), pick(r, placeholders))
		}) + "  \"version\": 2\n}\n"
	}},
	{"connection strings without a password", "database.md", func(r random) string {
		return choose(r, 80,
			func() string {
				return "postgres://" + r.word() + ":" + pick(r, passwordPlaces) + "@" + r.host() + ":5432/" + r.word() + "\n"
			},
			func() string { return "DATABASE_URL=mysql://" + r.word() + "@" + r.host() + "/" + r.word() + "\n" },
			func() string { return "redis://" + r.host() + ":6379/0?db=" + r.of(digits, 1) + "\n" },
			func() string {
				return "host=" + r.host() + " user=app password=" + pick(r, passwordPlaces) + " dbname=" + r.word() + "\n"
			},
			func() string {
				return "Server=" + r.host() + ";User Id=app;Password=" + pick(r, passwordPlaces) + ";\n"
			},
			func() string {
				return "  url: \"https://" + pick(r, passwordPlaces) + "@" + r.host() + "/" + r.slug() + ".git\"\n"
			},
			func() string {
				return "see http://" + r.host() + ":8080/" + r.slug() + "?user=" + r.word() + "@" + r.host() + "\n"
			},
			func() string {
				return "git@github.com:" + r.word() + "/" + r.slug() + ".git and ssh://git@" + r.host() + ":22/x.git\n"
			},
		)
	}},
	{"documentation", "docs/authentication.md", func(r random) string {
		return "# Authentication\n\n" + choose(r, 35,
			func() string {
				return "Send the API key in the `Authorization` header:\n\n```sh\ncurl -H \"Authorization: Bearer " + pick(r, placeholders) + "\" https://" + r.host() + "/v1/me\n```\n"
			},
			func() string {
				return "The **access token** expires after " + r.of("123456789", 1) + " hours. Set `" + pick(r, upperNames) + "` to your own.\n"
			},
			func() string {
				return "| `" + strings.ToLower(pick(r, upperNames)) + "` | string | required | The secret of " + r.slug() + ", see [tokens](https://" + r.host() + "/docs/tokens#" + r.slug() + ") |\n"
			},
			func() string {
				return "    aws_access_key_id = AK" + "IAIOSFODNN7EXAMPLE\n    aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY\n"
			},
			func() string {
				return "export " + pick(r, upperNames) + "=$(" + pick(r, []string{"op read op://prod/" + r.slug() + "/password", "gcloud auth print-access-token", "vault kv get -field=token secret/" + r.slug(), "pass show " + r.slug(), "aws ecr get-login-password"}) + ")\n"
			},
			func() string {
				return "Tokens look like `sk-...`, `ghp_xxxxxxxxxxxxxxxxxxxx` or `AK" + "IA****************`.\n"
			},
			func() string {
				return "curl -u user:password https://" + r.host() + " ; curl -u \"$USER:$TOKEN\" -X POST https://" + r.host() + "/api\n"
			},
		)
	}},
	{"code that handles secrets: Go", "internal/auth/token.go", func(r random) string {
		return "package auth\n\n" + choose(r, 45,
			func() string {
				return "\tapiKey := os.Getenv(\"" + pick(r, upperNames) + "\")\n\tif apiKey == \"\" {\n\t\treturn errors.New(\"missing api key\")\n\t}\n"
			},
			func() string { return "\tsecretKey, err := store." + r.ident() + "(ctx, " + r.ident() + ".ID)\n" },
			func() string {
				return "const " + r.ident() + " = \"" + pick(r, []string{"X-Api-Key", "access_token", "client_secret", "api.auth.token/v1", "secrets.k8s.io/checksum", "authorization_code", r.slug() + ".auth.keys.v1"}) + "\"\n"
			},
			func() string {
				return "\ttoken = strings.TrimPrefix(req.Header.Get(\"Authorization\"), \"Bearer \")\n"
			},
			func() string {
				return "\tPassword string `json:\"password,omitempty\" validate:\"required,min=12\"`\n"
			},
			func() string {
				return "var tokenPattern = regexp.MustCompile(`^tok_[a-zA-Z0-9]{24,32}$`)\n"
			},
			func() string {
				return "\tcfg.AccessKey = cmp.Or(flags.AccessKey, env.AccessKey, defaults." + r.ident() + ")\n"
			},
			func() string {
				return "\tkey := hkdf.Expand(sha256.New, secret, []byte(\"" + r.slug() + "/v1\"), 32)\n"
			},
			func() string {
				return "\treturn fmt.Errorf(\"token %q: %w\", id, ErrExpiredAccessToken)\n"
			},
		)
	}},
	{"code that handles secrets: JavaScript", "src/auth.ts", func(r random) string {
		return choose(r, 70,
			func() string { return "const apiKey = process.env." + pick(r, upperNames) + ";\n" },
			func() string { return "  password: await bcrypt.hash(req.body.password, SALT_ROUNDS),\n" },
			func() string {
				return "  token: jwt.sign({ sub: user.id }, config." + r.ident() + ", { expiresIn: '15m' }),\n"
			},
			func() string {
				return "export const selectAccessToken = createSelector(selectAuth, (s) => s." + r.ident() + ");\n"
			},
			func() string {
				return "  secretKey: config.get<string>('" + r.word() + "." + r.word() + ".secretKey'),\n"
			},
			func() string { return "  key={`${" + r.ident() + ".id}-${index}`}\n" },
			func() string {
				return "import { " + r.ident() + " } from '@/" + r.word() + "/" + r.slug() + "-token.service';\n"
			},
			func() string { return "localStorage.setItem('auth_token_key', response.data.accessToken);\n" },
			func() string { return "  apiKey: import.meta.env.VITE_FIREBASE_API_KEY ?? '',\n" },
			func() string {
				return "  const { access_token: accessToken, refresh_token: refreshToken } = await res.json();\n"
			},
		)
	}},
	{"code that handles secrets: Python", "app/auth.py", func(r random) string {
		return choose(r, 70,
			func() string { return "API_KEY = os.environ[\"" + pick(r, upperNames) + "\"]\n" },
			func() string { return "    password = getpass.getpass(\"Password: \")\n" },
			func() string { return "    token = secrets.token_urlsafe(32)\n" },
			func() string {
				return "    secret = client.get_secret_value(SecretId=\"" + r.slug() + "/" + r.word() + "\")[\"SecretString\"]\n"
			},
			func() string {
				return "    def " + name(r.slug()).snake() + "_key(self, key: str = \"default\") -> str:\n"
			},
			func() string {
				return "    parser.add_argument(\"--api-key\", default=None, help=\"the API key, or " + pick(r, upperNames) + "\")\n"
			},
			func() string { return "    auth=HTTPBasicAuth(settings.username, settings.password),\n" },
			func() string {
				return "    raise AuthError(f\"token {token_id} of {user.email} has expired\")\n"
			},
			func() string {
				return "DB_PASSWORD: SecretStr = Field(alias=\"" + pick(r, upperNames) + "\")\n"
			},
		)
	}},
	{"test fixtures", "tests/fixtures.py", func(r random) string {
		return choose(r, 70,
			func() string {
				return "user = User(email='" + r.word() + "@example.com', password='" + pick(r, []string{"password", "test", "secret", "password123", "changeme", "hunter2", "test1234"}) + "')\n"
			},
			func() string {
				return "    \"token\": \"" + pick(r, []string{"test-token", "fake-token", "abc123", "mock_access_token", "dummy", "invalid", "expired-token", "token-1"}) + "\",\n"
			},
			func() string { return "assert response.json()['id'] == '" + r.uuid() + "'\n" },
			func() string { return "API_KEY = 'test_api_key'\nSECRET_KEY = 'not-a-real-secret'\n" },
			func() string { return "mock.return_value = {'key': '" + r.word() + "', 'etag': '" + r.hex(32) + "'}\n" },
			func() string { return "expect(hash).toBe('" + r.hex(64) + "');\n" },
		)
	}},
	{"texts for people", "locales/en.json", func(r random) string {
		return "{\n" + choose(r, 80,
			func() string { return "  \"auth.password.label\": \"Password\",\n" },
			func() string {
				return "  \"auth." + r.word() + ".password_hint\": \"At least 12 characters, one digit\",\n"
			},
			func() string { return "  \"settings.api_key.placeholder\": \"Paste your API key here\",\n" },
			func() string {
				return "  \"token." + r.word() + ".expired\": \"Your access token has expired. Sign in again.\",\n"
			},
			func() string { return "  \"secret" + name(r.slug()).Camel() + "\": \"Geheimnis wiederherstellen\",\n" },
		) + "  \"ok\": \"OK\"\n}\n"
	}},
	{"HTML form", "login.html", func(r random) string {
		return repeat(20, func() string {
			return fmt.Sprintf("<form id=%q action=\"/auth/%s\" method=\"post\">\n  <input type=\"password\" name=\"password\" autocomplete=\"current-password\" placeholder=\"Password\">\n  <input type=\"text\" name=\"api_key\" class=\"form-%s__input--%s\" data-key=\"%s\">\n</form>\n", r.slug(), r.word(), r.word(), r.word(), r.slug())
		})
	}},
	{"SQL schema", "schema.sql", func(r random) string {
		return repeat(16, func() string {
			return fmt.Sprintf("CREATE TABLE %s (\n  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),\n  password_hash text NOT NULL,\n  access_token_id varchar(64) UNIQUE,\n  api_key_digest bytea,\n  FOREIGN KEY (key_id) REFERENCES api_keys_%s (id)\n);\n", name(r.slug()).snake(), r.word())
		})
	}},
	{"OpenAPI", "openapi.yaml", func(r random) string {
		return repeat(9, func() string {
			return fmt.Sprintf("  /%s/{token_id}:\n    get:\n      operationId: %s\n      security:\n        - api_key: []\n        - bearerAuth: []\n      parameters:\n        - name: X-Request-Id\n          in: header\n          example: %s\n      responses:\n        '200':\n          $ref: '#/components/responses/%s'\n", r.word(), r.ident(), r.uuid(), name(r.slug()).Camel())
		})
	}},
	{"long identifiers", "names.txt", func(r random) string {
		return choose(r, 90,
			func() string {
				return "com." + r.word() + "." + r.word() + ".security.authentication." + name(r.slug()).Camel() + "AccessTokenAuthenticationProviderFactoryBean\n"
			},
			func() string {
				return "secret_key_" + name(r.slug()+" "+r.slug()).snake() + "_rotation_interval_seconds = " + r.of("123456789", 4) + "\n"
			},
			func() string {
				return "arn:aws:iam::" + r.of(digits, 12) + ":role/" + r.slug() + "-access-key-rotation\n"
			},
			func() string {
				return "key=/" + r.word() + "/" + r.word() + "/" + r.date() + "/" + r.slug() + ".parquet\n"
			},
			func() string {
				return "projects/" + r.slug() + "/locations/global/keyRings/" + r.slug() + "/cryptoKeys/" + r.slug() + "\n"
			},
			func() string {
				return "token: " + name(r.slug()).Camel() + "TokenKind." + name(r.word()).Camel() + "Keyword\n"
			},
		)
	}},
	{"CI log", "ci.log", func(r random) string {
		return choose(r, 90,
			func() string {
				return r.date() + "T" + r.clock() + ".1234567Z env:\n" + r.date() + "T" + r.clock() + ".1234567Z   " + pick(r, upperNames) + ": ***\n"
			},
			func() string {
				return r.date() + "T" + r.clock() + ".7654321Z ##[group]Run actions/checkout@" + r.hex(40) + "\n"
			},
			func() string {
				return r.date() + "T" + r.clock() + ".7654321Z Cache restored from key: Linux-node-" + r.hex(64) + "\n"
			},
			func() string {
				return "   token: ***\n   ssh-key: \n   persist-credentials: true\n   key: ${{ runner.os }}-go-${{ hashFiles('**/go.sum') }}\n"
			},
			func() string {
				return "::add-mask::***\n[command]/usr/bin/git config --local http.https://github.com/.extraheader AUTHORIZATION: basic ***\n"
			},
			func() string {
				return "ok  \tgithub.com/" + r.word() + "/" + r.word() + "/auth\t1." + r.of(digits, 3) + "s\n"
			},
			func() string {
				return "  PASS src/" + r.word() + "/" + r.slug() + "-token.test.ts (5." + r.of(digits, 3) + " s)\n"
			},
		)
	}},
	{"stack traces", "crash.log", func(r random) string {
		return repeat(12, func() string {
			return choose(r, 1,
				func() string {
					return "goroutine " + r.of("123456789", 2) + " [running]:\nmain.(*" + r.ident() + ").Token(0xc000" + r.hex(6) + ", {0xc000" + r.hex(6) + ", 0x20})\n\t/src/auth/token.go:" + r.of("123456789", 3) + " +0x" + r.hex(3) + "\ncreated by net/http.(*Server).Serve in goroutine 1\n"
				},
				func() string {
					return "java.lang.IllegalStateException: Access token expired\n\tat com." + r.word() + ".auth.AccessTokenFilter.doFilter(AccessTokenFilter.java:" + r.of("123456789", 3) + ")\n\tat org.springframework.security.web.FilterChainProxy$VirtualFilterChain.doFilter(FilterChainProxy.java:374)\n\tat java.base/java.lang.Thread.run(Thread.java:1583)\n"
				},
				func() string {
					return "Traceback (most recent call last):\n  File \"/usr/lib/python3.12/site-packages/" + r.word() + "/auth.py\", line " + r.of("123456789", 3) + ", in refresh\n    token = self._fetch(key=self.key_id)\nKeyError: 'access_token'\n"
				},
				func() string {
					return "TypeError: Cannot read properties of undefined (reading 'apiKey')\n    at " + name(r.slug()).Camel() + "." + r.ident() + " (webpack-internal:///./src/" + r.slug() + ".ts:" + r.of("123456789", 2) + ":17)\n    at async Promise.all (index 0)\n"
				},
			)
		})
	}},
	{"compiler output", "build.log", func(r random) string {
		return choose(r, 80,
			func() string {
				return "src/" + r.word() + "/token.rs:" + r.of("123456789", 2) + ":5: error[E0308]: mismatched types expected `SecretKey`, found `" + name(r.slug()).Camel() + "`\n"
			},
			func() string {
				return "./auth.go:" + r.of("123456789", 2) + ":9: undefined: " + r.ident() + "\n"
			},
			func() string {
				return "/usr/bin/ld: " + r.word() + ".o: in function `_ZN" + r.of(digits, 2) + name(r.slug()).Camel() + "10access_key17h" + r.hex(16) + "E': undefined reference\n"
			},
			func() string {
				return "  Compiling " + r.slug() + " v" + r.version() + " (https://github.com/" + r.word() + "/" + r.word() + "?rev=" + r.hex(7) + "#" + r.hex(8) + ")\n"
			},
			func() string {
				return "warning: unused variable: `password` [-Wunused-variable] --> lib/" + r.slug() + ".c:" + r.of("123456789", 3) + "\n"
			},
		)
	}},
	{"docker build and pull", "docker.log", func(r random) string {
		return choose(r, 80,
			func() string {
				return "#" + r.of("123456789", 1) + " resolve docker.io/library/" + r.word() + "@sha256:" + r.hex(64) + " done\n"
			},
			func() string { return r.hex(12) + ": Pull complete\nDigest: sha256:" + r.hex(64) + "\n" },
			func() string {
				return " => => writing image sha256:" + r.hex(64) + "\n => => naming to " + r.host() + "/" + r.slug() + ":" + r.hex(7) + "\n"
			},
			func() string {
				return " => [internal] load auth token for " + r.word() + "/" + r.slug() + ":pull token for registry-1.docker.io 0.0s\n"
			},
			func() string { return " ---> Running in " + r.hex(12) + "\n ---> " + r.hex(12) + "\n" },
		)
	}},
	{"kubectl", "kubectl.txt", func(r random) string {
		return choose(r, 60,
			func() string {
				return r.word() + "   " + r.slug() + "-" + r.hex(9) + "-" + r.of("bcdfghjklmnpqrstvwxz2456789", 5) + "   1/1   Running   0   " + r.of("123456789", 2) + "d\n"
			},
			func() string {
				return r.word() + "   secret/" + r.slug() + "-token-" + r.of("bcdfghjklmnpqrstvwxz2456789", 5) + "   kubernetes.io/service-account-token   3   " + r.of("123456789", 2) + "d\n"
			},
			func() string {
				return "    - name: " + pick(r, upperNames) + "\n      valueFrom:\n        secretKeyRef:\n          name: " + r.slug() + "\n          key: " + name(r.slug()).snake() + "\n"
			},
			func() string {
				return "  annotations:\n    checksum/secret: " + r.hex(64) + "\n    deployment.kubernetes.io/revision: \"12\"\n  uid: " + r.uuid() + "\n  resourceVersion: \"" + r.of("123456789", 9) + "\"\n"
			},
			func() string {
				return "Events:\n  Normal  Pulled  3m  kubelet  Container image \"" + r.host() + "/" + r.slug() + "@sha256:" + r.hex(64) + "\" already present\n"
			},
			func() string {
				return "Data\n====\ntoken:      1024 bytes\npassword:   24 bytes\nca.crt:     1107 bytes\n"
			},
		)
	}},
	{"Helm template", "templates/secret.yaml", func(r random) string {
		return choose(r, 40,
			func() string {
				return "apiVersion: v1\nkind: Secret\nmetadata:\n  name: {{ include \"" + r.slug() + ".fullname\" . }}\ndata:\n  password: {{ .Values." + r.word() + ".password | b64enc | quote }}\n  api-key: {{ required \"apiKey\" .Values.apiKey | b64enc }}\n"
			},
			func() string {
				return "      - name: " + pick(r, upperNames) + "\n        value: {{ tpl .Values." + r.ident() + " . | quote }}\n"
			},
			func() string { return "      secretName: " + r.slug() + "-tls\n      tokenReview: true\n" },
		)
	}},
	{"GitHub workflow", ".github/workflows/release.yml", func(r random) string {
		return choose(r, 40,
			func() string {
				return "      - uses: " + r.word() + "/" + r.slug() + "@" + r.hex(40) + " # v" + r.version() + "\n"
			},
			func() string {
				return "        env:\n          " + pick(r, upperNames) + ": ${{ secrets." + pick(r, upperNames) + " }}\n"
			},
			func() string {
				return "        with:\n          token: ${{ github.token }}\n          key: ${{ runner.os }}-${{ hashFiles('**/package-lock.json') }}\n"
			},
			func() string {
				return "        run: echo \"$" + pick(r, upperNames) + "\" | docker login " + r.host() + " -u ci --password-stdin\n"
			},
			func() string { return "      id-token: write\n      secrets: inherit\n" },
		)
	}},
	{"Terraform plan", "plan.txt", func(r random) string {
		return choose(r, 60,
			func() string {
				return "  + resource \"aws_db_instance\" \"" + r.word() + "\" {\n      + arn      = (known after apply)\n      + id       = \"" + r.slug() + "-" + r.hex(17) + "\"\n      + password = (sensitive value)\n    }\n"
			},
			func() string {
				return "  ~ secret_string = (sensitive value)\n  ~ kms_key_id    = \"arn:aws:kms:eu-west-1:" + r.of(digits, 12) + ":key/" + r.uuid() + "\"\n"
			},
			func() string {
				return "aws_iam_access_key." + r.word() + ": Refreshing state... [id=" + r.slug() + "]\n"
			},
			func() string {
				return "      ~ source_code_hash = \"" + r.base64(32) + "\" -> (known after apply)\n      + key_name = \"" + r.slug() + "\"\n"
			},
			func() string {
				return "  access_key = var." + name(r.slug()).snake() + "_access_key\n  token      = data.aws_eks_cluster_auth." + r.word() + ".token\n"
			},
		)
	}},
	{"aws CLI", "aws.json", func(r random) string {
		return repeat(9, func() string {
			return fmt.Sprintf("        {\n            \"InstanceId\": \"i-0%s\",\n            \"ImageId\": \"ami-0%s\",\n            \"KeyName\": %q,\n            \"ETag\": \"\\\"%s\\\"\",\n            \"ClientToken\": %q,\n            \"Key\": \"%s/%s.json\",\n            \"KeyId\": %q,\n            \"RoleId\": \"ARO%s\",\n            \"VpcId\": \"vpc-0%s\"\n        },\n", r.hex(16), r.hex(16), r.slug(), r.hex(32), r.uuid(), r.word(), r.slug(), r.uuid(), r.of(base32, 18), r.hex(16))
		})
	}},
	{"HTTP headers", "headers.txt", func(r random) string {
		return repeat(9, func() string {
			return fmt.Sprintf("HTTP/2 200\netag: W/\"%s\"\nx-request-id: %s\ncf-ray: %s-AMS\ntraceparent: 00-%s-%s-01\nstrict-transport-security: max-age=63072000\ncontent-security-policy: script-src 'sha256-%s' 'nonce-%s'\naccess-control-allow-headers: Authorization, X-Api-Key\nwww-authenticate: Bearer realm=\"https://%s/token\",service=%q,scope=\"repository:%s:pull\"\n\n", r.hex(32), r.uuid(), r.hex(16), r.hex(32), r.hex(16), r.base64(32), r.base64(16), r.host(), r.host(), r.slug())
		})
	}},
	{"access log", "access.log", func(r random) string {
		return repeat(80, func() string {
			return fmt.Sprintf("%s - - [12/Mar/2026:%s +0000] \"GET /%s/%s?key=%s&page=%d HTTP/1.1\" 200 %d \"https://%s/\" \"Mozilla/5.0\" rid=%s\n", r.ip(), r.clock(), r.word(), r.uuid(), r.word(), r.IntN(50), r.IntN(90000), r.host(), r.hex(16))
		})
	}},
	{"structured log", "app.log", func(r random) string {
		return repeat(70, func() string {
			return fmt.Sprintf("{\"level\":\"info\",\"ts\":\"%sT%sZ\",\"msg\":%q,\"trace_id\":%q,\"span_id\":%q,\"user_id\":%q,\"key_id\":%q,\"duration_ms\":%d}\n", r.date(), r.clock(), pick(r, []string{"token refreshed", "secret rotated", "api key accepted", "password changed"}), r.hex(32), r.hex(16), r.uuid(), r.hex(16), r.IntN(900))
		})
	}},
	{"sops and sealed secrets", "secrets.enc.yaml", func(r random) string {
		return repeat(40, func() string {
			return fmt.Sprintf("%s: ENC[AES256_GCM,data:%s,iv:%s,tag:%s,type:str]\n", strings.ToLower(pick(r, upperNames)), r.base64(24), r.base64(32), r.base64(16))
		})
	}},
	{"protobuf, Prometheus, traces", "metrics.txt", func(r random) string {
		return choose(r, 90,
			func() string {
				return "auth_token_requests_total{handler=\"" + r.slug() + "\",key=\"" + r.word() + "\"} " + r.of("123456789", 6) + "\n"
			},
			func() string {
				return "  string access_key_id = " + r.of("123456789", 1) + " [json_name = \"accessKeyId\"];\n"
			},
			func() string { return "  bytes secret_" + r.word() + " = " + r.of("123456789", 1) + ";\n" },
			func() string {
				return "trace=" + r.hex(32) + " span=" + r.hex(16) + " op=auth.token.verify status=ok\n"
			},
		)
	}},
	{"binary as text", "strings.txt", func(r random) string {
		return repeat(90, func() string {
			return pick(r, []string{r.of(alnum+"$_.<>()%&", r.between(6, 30)), "_ZN4core3ptr" + r.of(digits, 2) + "drop_in_place$LT$" + r.word() + "..Token$GT$17h" + r.hex(16) + "E", "GLIBC_2." + r.of(digits, 2), "runtime." + r.ident()}) + "\n"
		})
	}},
	{"test vectors and encodings", "encode_test.txt", func(r random) string {
		return repeat(50, func() string {
			return "in=" + r.slug() + " base64=" + base64.StdEncoding.EncodeToString([]byte(r.slug()+" "+r.slug())) + " hex=" + fmt.Sprintf("%x", r.slug()) + "\n"
		})
	}},
}

var upperNames = strings.Fields(`API_KEY SECRET_KEY DB_PASSWORD GITHUB_TOKEN AWS_SECRET_ACCESS_KEY STRIPE_SECRET_KEY OPENAI_API_KEY JWT_SECRET
SESSION_SECRET REDIS_PASSWORD SENTRY_AUTH_TOKEN NPM_TOKEN SLACK_BOT_TOKEN CLIENT_SECRET ENCRYPTION_KEY SMTP_PASSWORD ACCESS_TOKEN
TWILIO_AUTH_TOKEN TELEGRAM_BOT_TOKEN DISCORD_TOKEN HEROKU_API_KEY MAILGUN_API_KEY SENDGRID_API_KEY ADMIN_PASSWORD WEBHOOK_SECRET`)

// placeholders are what stands where a secret would.
var placeholders = []string{
	"your-api-key-here", "your_api_key", "YOUR_API_KEY", "YOUR-TOKEN-HERE", "<token>", "<your-token>", "<YOUR_SECRET_KEY>", "xxxxxxxxxxxxxxxx", "XXXXXXXX-XXXX-XXXX", "xxxx-xxxx-xxxx",
	"changeme", "change-me-in-production", "CHANGE_ME", "replace-with-your-key", "REPLACE_ME", "insert-your-key-here", "secret", "password", "example", "my-secret-token", "test", "todo",
	"${API_KEY}", "${SECRET_KEY:-}", "${DB_PASSWORD:?required}", "$TOKEN", "$(cat /run/secrets/token)", "{{ api_key }}", "{{secrets.API_KEY}}", "%API_KEY%", "@@TOKEN@@", "#{token}#",
	"***", "********", "[REDACTED]", "<redacted>", "(hidden)", "...", "sk-...", "sk-xxxxxxxxxxxxxxxxxxxxxxxx", "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "pk_test_...", "0000000000000000", "1234567890", "abcdef123456",
	"op://prod/stripe/secret-key", "vault:secret/data/app#token", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:app-Ab12Cd", "file:/run/secrets/api_key", "null", "false", "none", "\"\"", "!vault |", "!secret api_key", "env(SECRET)",
	"generate-with-openssl-rand-hex-32", "a-long-random-string-of-at-least-32-characters", "this-is-not-a-real-secret", "put_your_secret_here", "dummy-token-for-tests", "sample_token_value", "my-super-secret-password", "supersecret", "s3cr3t", "p@ssw0rd",
}

// passwordPlaces are the same in a URL.
var passwordPlaces = []string{
	"${DB_PASSWORD}", "$DB_PASSWORD", "<password>", "password", "PASSWORD", "secret", "***", "****", "xxxxx", "changeme", "{password}", "%s", "{{ .Values.db.password }}", "$(DB_PASSWORD)", "your-password", "[password]", "postgres", "example", "pass", "test",
}
