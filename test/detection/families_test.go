package detection

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
)

// A value is what is put into a place: text, of which secret is what must be
// found, such as the password in a URL.
type value struct{ text, secret string }

func all(s string) value { return value{s, s} }

// A family is one kind of secret.
type family struct {
	name  string
	rules []string // those that know this kind
	keys  []string // what people call it, in words
	make  func(r random) value
	// places are where such secrets are found: nil for the common ones.
	places []place
	// The least recall that is asked for, in percent: 0 for leastRecall.
	least int
}

func token(form func(r random) string) func(r random) value {
	return func(r random) value { return all(form(r)) }
}

// Each family's secrets have the form that their provider documents, or that
// is seen of its real ones.
var families = []family{
	{name: "AWS access key ID", rules: []string{"aws-access-token"}, keys: []string{"aws access key id", "s3 access key id"},
		make: token(func(r random) string { return pick(r, []string{"AK" + "IA", "AS" + "IA"}) + r.of(base32, 16) })},
	{name: "AWS secret access key", rules: []string{"generic-api-key", "generic-secret"}, keys: []string{"aws secret access key", "s3 secret key", "aws secret key"},
		make: token(func(r random) string { return r.of(b64, 40) })},
	{name: "Google API key", rules: []string{"gcp-api-key"}, keys: []string{"google api key", "maps key", "firebase api key", "gemini api key"},
		make: token(func(r random) string { return "AI" + "zaSy" + r.of(b64URL, 33) })},
	{name: "Google OAuth", rules: []string{"google-oauth"}, keys: []string{"google client secret", "oauth client secret", "google access token"},
		make: token(func(r random) string {
			if r.IntN(2) == 0 {
				return "GOC" + "SPX-" + r.of(b64URL, 28)
			}
			return "ya" + "29." + r.of(b64URL, r.between(140, 190))
		})},
	{name: "Google service account", least: 90, rules: []string{"private-key"}, keys: []string{"google credentials", "gcp service account"}, make: serviceAccount, places: blocks},
	{name: "Azure AD client secret", rules: []string{"azure-ad-client-secret"}, keys: []string{"azure client secret", "arm client secret", "client secret"},
		make: token(func(r random) string {
			return r.of(alnum+"_~.", 3) + r.of(digits, 1) + "Q" + "~" + r.of(alnum+"_~.-", 34)
		})},
	{name: "Azure connection string", rules: []string{"azure-shared-key", "azure-shared-access-signature"}, keys: []string{"azure storage connection string", "service bus connection string", "connection string"}, make: azureConnection},
	{name: "GitHub token", rules: []string{"github-pat", "github-oauth", "github-app-token", "github-refresh-token"}, keys: []string{"github token", "gh token", "git token", "github pat"},
		make: token(func(r random) string { return "gh" + r.of("pousr", 1) + "_" + r.of(alnum, 36) })},
	{name: "GitHub fine-grained token", rules: []string{"github-fine-grained-pat"}, keys: []string{"github token", "gh token", "release token"},
		make: token(func(r random) string { return "github" + "_pat_" + r.of(alnum, 22) + "_" + r.of(alnum, 59) })},
	{name: "GitLab", rules: []string{"gitlab-pat", "gitlab-pat-routable", "gitlab-ptt", "gitlab-deploy-token", "gitlab-runner-authentication-token", "gitlab-rrt", "gitlab-cicd-job-token", "gitlab-oauth-app-secret"}, keys: []string{"gitlab token", "ci token", "gitlab access token"},
		make: token(func(r random) string {
			switch r.IntN(6) {
			case 0:
				return "glp" + "tt-" + r.hex(40)
			case 1:
				return "gld" + "t-" + r.of(b64URL, 20)
			case 2:
				return "glr" + "t-" + r.of(b64URL, 20)
			case 3:
				return "glo" + "as-" + r.hex(64)
			}
			return "glp" + "at-" + r.of(b64URL, 20)
		})},
	{name: "Slack token", rules: []string{"slack-bot-token", "slack-user-token", "slack-app-token", "slack-config-access-token", "slack-legacy-token", "slack-legacy-workspace-token"}, keys: []string{"slack token", "slack bot token", "slack api token"},
		make: token(func(r random) string {
			switch r.IntN(3) {
			case 0:
				return "xox" + "p-" + r.of(digits, 12) + "-" + r.of(digits, 12) + "-" + r.of(digits, 13) + "-" + r.hex(32)
			case 1:
				return "xa" + "pp-1-A" + r.of(upper+digits, 10) + "-" + r.of(digits, 13) + "-" + r.hex(64)
			}
			return "xox" + "b-" + r.of("123456789", 1) + r.of(digits, 11) + "-" + r.of(digits, 13) + "-" + r.of(alnum, 24)
		})},
	{name: "Slack webhook", rules: []string{"slack-webhook-url"}, keys: []string{"slack webhook", "slack webhook url", "alert webhook"},
		make: func(r random) value {
			path := "T" + r.of(upper+digits, 10) + "/B" + r.of(upper+digits, 10) + "/" + r.of(alnum, 24)
			return value{"https://hooks." + "slack.com/services/" + path, path}
		}},
	{name: "Stripe", rules: []string{"stripe-access-token", "stripe-webhook-secret"}, keys: []string{"stripe secret key", "stripe api key", "stripe key"},
		make: token(func(r random) string {
			switch r.IntN(5) {
			case 0:
				return "rk" + "_live_51" + r.of(alnum, 99-8)
			case 1:
				return "wh" + "sec_" + r.of(alnum, 32)
			case 2:
				return "sk" + "_test_" + r.of(alnum, 24)
			}
			return "sk" + "_live_51" + r.of(alnum, 97)
		})},
	{name: "OpenAI", rules: []string{"openai-api-key"}, keys: []string{"openai api key", "openai key", "llm api key"},
		make: token(func(r random) string {
			if r.IntN(4) == 0 {
				return "sk" + "-" + r.of(alnum, 20) + "T3Blbk" + "FJ" + r.of(alnum, 20)
			}
			return "sk" + "-" + pick(r, []string{"proj", "svcacct", "admin"}) + "-" + r.of(b64URL, 74) + "T3Blbk" + "FJ" + r.of(b64URL, 73) + r.of(alnum, 1)
		})},
	{name: "Anthropic", rules: []string{"anthropic-api-key", "anthropic-admin-api-key"}, keys: []string{"anthropic api key", "claude api key", "llm key"},
		make: token(func(r random) string {
			return "sk" + "-ant-" + pick(r, []string{"api03", "api03", "admin01"}) + "-" + r.of(b64URL, 93) + "AA"
		})},
	{name: "npm", rules: []string{"npm-access-token", "npmrc-auth-token"}, keys: []string{"npm token", "node auth token", "npm auth token"},
		make: token(func(r random) string { return "np" + "m_" + r.of(alnum, 36) })},
	{name: "PyPI", rules: []string{"pypi-upload-token"}, keys: []string{"pypi token", "twine password", "pypi api token"},
		make: token(func(r random) string { return "py" + "pi-AgEIcHlwaS5vcmc" + r.of(b64URL, r.between(130, 160)) })},
	{name: "Docker Hub", rules: []string{"dockerhub-token"}, keys: []string{"docker hub token", "dockerhub password", "docker password"},
		make: token(func(r random) string {
			if r.IntN(4) == 0 {
				return "dck" + "r_oat_" + r.of(b64URL, 32)
			}
			return "dck" + "r_pat_" + r.of(b64URL, 26) + r.of(alnum, 1)
		})},
	{name: "DigitalOcean", rules: []string{"digitalocean-pat", "digitalocean-access-token", "digitalocean-refresh-token"}, keys: []string{"digitalocean token", "do token", "digitalocean access token"},
		make: token(func(r random) string { return "do" + r.of("por", 1) + "_v1_" + r.hex(64) })},
	{name: "Heroku", rules: []string{"heroku-api-key", "heroku-api-key-v2"}, keys: []string{"heroku api key", "heroku token"},
		make: token(func(r random) string {
			if r.IntN(2) == 0 {
				return "HR" + "KU-AA" + r.of(b64URL, 57) + r.of(alnum, 1)
			}
			return r.uuid()
		})},
	{name: "Twilio", rules: []string{"twilio-api-key"}, keys: []string{"twilio auth token", "twilio api secret", "twilio api key"},
		make: token(func(r random) string {
			if r.IntN(2) == 0 {
				return "S" + "K" + r.hex(32)
			}
			return r.hex(32)
		})},
	{name: "SendGrid", rules: []string{"sendgrid-api-token"}, keys: []string{"sendgrid api key", "smtp password", "sendgrid token"},
		make: token(func(r random) string { return "S" + "G." + r.of(b64URL, 22) + "." + r.of(b64URL, 42) + r.of(alnum, 1) })},
	{name: "Mailgun", rules: []string{"mailgun-private-api-token", "mailgun-signing-key", "mailgun-api-key"}, keys: []string{"mailgun api key", "mailgun key", "mailgun token"},
		make: token(func(r random) string {
			if r.IntN(2) == 0 {
				return "ke" + "y-" + r.hex(32)
			}
			return r.hex(32) + "-" + r.hex(8) + "-" + r.hex(8)
		})},
	{name: "Telegram bot token", rules: []string{"telegram-bot-api-token", "telegram-bot-token"}, keys: []string{"telegram bot token", "bot token", "telegram token"},
		make: token(func(r random) string {
			return r.of("123456789", 1) + r.of(digits, 9) + ":A" + "A" + r.of("EFGH", 1) + r.of(b64URL, 32)
		})},
	{name: "Discord", rules: []string{"discord-bot-token", "discord-webhook-url", "discord-api-token"}, keys: []string{"discord token", "discord bot token", "bot token"},
		make: func(r random) value {
			if r.IntN(3) == 0 {
				secret := r.of(b64URL, 68)
				return value{"https://discord" + ".com/api/webhooks/" + r.of("123456789", 1) + r.of(digits, 17) + "/" + secret, secret}
			}
			id := r.of("1", 1) + r.of(digits, 17)
			return all(base64.RawStdEncoding.EncodeToString([]byte(id)) + ".G" + r.of(b64URL, 5) + "." + r.of(b64URL, 38))
		}},
	{name: "Shopify", rules: []string{"shopify-access-token", "shopify-custom-access-token", "shopify-private-app-access-token", "shopify-shared-secret"}, keys: []string{"shopify access token", "shopify token", "shopify api secret"},
		make: token(func(r random) string { return "shp" + pick(r, []string{"at", "ca", "pa", "ss"}) + "_" + r.hex(32) })},
	{name: "JWT", rules: []string{"jwt", "jwt-base64"}, keys: []string{"access token", "jwt", "session token", "service role key"}, make: token(jwt)},
	{name: "Private key", rules: []string{"private-key"}, keys: []string{"private key", "tls key", "ssh key", "signing key"}, make: privateKey, places: blocks},
	{name: "Connection string", rules: []string{"connection-string-password"}, keys: []string{"database url", "dsn", "redis url", "amqp url", "mongo uri", "connection string"}, make: connection},
	{name: "Connection parameters", least: 85, rules: []string{"connection-parameter-password", "generic-password"}, keys: []string{"connection string", "jdbc url", "dsn", "db connection"}, make: parameters},
	{name: "Basic auth URL", rules: []string{"connection-string-password"}, keys: []string{"registry url", "proxy url", "git remote", "pip index url", "webhook url"}, make: basicURL},
	{name: "HTTP credentials", least: 85, rules: []string{"curl-auth-header", "curl-auth-user", "generic-authorization-header", "generic-url-parameter", "docker-config-auth", "npmrc-auth-token", "netrc-password"}, keys: []string{"token"}, make: token(func(r random) string { return r.opaque() }), places: headers},
	{name: "Generic API key", rules: []string{"generic-api-key", "generic-secret"}, keys: []string{"api key", "secret key", "auth token", "access token", "client secret", "encryption key", "webhook secret", "signing secret"},
		make: token(func(r random) string { return r.opaque() })},
	{name: "Password", least: 85, rules: []string{"generic-password"}, keys: []string{"db password", "password", "admin password", "smtp password", "redis password", "keystore password", "postgres password"},
		make: token(func(r random) string { return r.password() })},
	{name: "Other tokens with a prefix", rules: otherRules, keys: []string{"api token", "api key", "access token", "token"}, make: token(other)},
}

// sample is how many of each family there are.
const sample = 200

func jwt(r random) string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	alg := pick(r, []string{"HS256", "RS256", "ES256"})
	head := part(map[string]string{"alg": alg, "typ": "JWT", "kid": r.hex(r.between(8, 40))})
	body := part(map[string]any{"sub": r.uuid(), "iss": "https://" + r.host() + "/", "aud": r.slug(), "iat": 1700000000 + r.IntN(1e8), "exp": 1800000000 + r.IntN(1e8)})
	n := map[string]int{"HS256": 32, "RS256": 256, "ES256": 64}[alg]
	return head + "." + body + "." + base64.RawURLEncoding.EncodeToString(r.bytes(n))
}

// pem has bytes of the right number and beginning in place of a key.
func pem(r random) string {
	kind, head, n := "RSA PRIVATE", "MIIEpAIBAAKCAQEA", 1180
	switch r.IntN(6) {
	case 0:
		kind, head, n = "EC PRIVATE", "MHcCAQEEI", 112
	case 1:
		kind, head, n = "OPENSSH PRIVATE", "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZWQyNTUxOQAAACD", 250
	case 2:
		kind, head, n = "PRIVATE", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC", 1220
	case 3:
		kind, head, n = "PRIVATE", "MC4CAQAwBQYDK2VwBCIEI", 43
	case 4:
		kind, head, n = "ENCRYPTED PRIVATE", "MIIFHDBOBgkqhkiG9w0BBQ0wQTApBgkqhkiG9w0BBQwwHAQ", 1300
	}
	body := head + r.of(b64, n)
	body += strings.Repeat("=", (4-len(body)%4)%4)
	var b strings.Builder
	b.WriteString("-----BEGIN " + kind + " KEY-----\n")
	for len(body) > 64 {
		b.WriteString(body[:64] + "\n")
		body = body[64:]
	}
	b.WriteString(body + "\n-----END " + kind + " KEY-----\n")
	return b.String()
}

// privateKey's secret is a line of its base64, which is the same wherever a key
// is, unless it is encoded once more.
func privateKey(r random) value {
	text := pem(r)
	return value{text, strings.Split(text, "\n")[1]}
}

func serviceAccount(r random) value {
	key := privateKey(r)
	for !strings.HasPrefix(key.text, "-----BEGIN PRI") {
		key = privateKey(r)
	}
	project := r.slug() + "-" + r.of(digits, 6)
	email := r.word() + "@" + project + ".iam.gserviceaccount.com"
	return value{fmt.Sprintf(`{
  "type": "service_account",
  "project_id": %q,
  "private_key_id": %q,
  "private_key": "%s",
  "client_email": %q,
  "client_id": "1%s",
  "auth_uri": "https://accounts.google.com/o/oauth2/auth",
  "token_uri": "https://oauth2.googleapis.com/token",
  "client_x509_cert_url": "https://www.googleapis.com/robot/v1/metadata/x509/%s"
}
`, project, r.hex(40), quoted(key.text), email, r.of(digits, 20), strings.ReplaceAll(email, "@", "%40")), key.secret}
}

func azureConnection(r random) value {
	name := r.word() + r.word()
	switch r.IntN(4) {
	case 0:
		secret := r.base64(32)
		return value{"Endpoint=sb://" + name + ".servicebus.windows.net/;SharedAccess" + "KeyName=RootManageSharedAccessKey;SharedAccess" + "Key=" + secret, secret}
	case 1:
		secret := r.base64(64)
		return value{"AccountEndpoint=https://" + name + ".documents.azure.com:443/;Account" + "Key=" + secret + ";", secret}
	case 2:
		secret := strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(r.base64(32))
		return value{"https://" + name + ".blob.core.windows.net/backups?sv=2022-11-02&ss=b&srt=sco&sp=rl&se=" + r.date() + "T10:00:00Z&spr=https&s" + "ig=" + secret, secret}
	}
	secret := r.base64(64)
	return value{"DefaultEndpointsProtocol=https;AccountName=" + name + ";Account" + "Key=" + secret + ";EndpointSuffix=core.windows.net", secret}
}

func connection(r random) value {
	secret := r.of(letters, 1) + r.of(alnum, r.between(9, 23))
	if r.IntN(2) == 0 {
		secret = strings.NewReplacer("#", "", "?", "", "@", "%40", "%", "").Replace(r.password())
	}
	user, host := pick(r, []string{"app", "admin", "postgres", "root", r.word() + "_rw"}), r.host()
	scheme, port, path := "postgres", "5432", "/"+r.word()
	switch r.IntN(8) {
	case 0:
		scheme, port = "mysql", "3306"
	case 1:
		scheme, port, path = "mongodb+srv", "", "/"+r.word()+"?retryWrites=true&w=majority"
	case 2:
		scheme, port, path, user = "redis", "6379", "/0", pick(r, []string{"", "default"})
	case 3:
		scheme, port, path = "amqp", "5672", "/"+r.word()
	case 4:
		scheme = "postgresql+asyncpg"
	case 5:
		path += "?sslmode=require"
	case 6:
		scheme, port = "mongodb", "27017"
	}
	if port != "" {
		host += ":" + port
	}
	return value{scheme + "://" + user + ":" + secret + "@" + host + path, secret}
}

// parameters are the connection strings that are no URL.
func parameters(r random) value {
	secret := strings.NewReplacer("=", "", "?", "", "#", "", "%", "", "@", "").Replace(r.password())
	host, db := r.host(), r.word()
	switch r.IntN(5) {
	case 0:
		return value{"host=" + host + " port=5432 user=app password=" + secret + " dbname=" + db + " sslmode=require", secret}
	case 1:
		return value{"Server=tcp:" + host + ",1433;Database=" + db + ";User ID=app;Password=" + secret + ";Encrypt=True;", secret}
	case 2:
		return value{"jdbc:postgresql://" + host + ":5432/" + db + "?user=app&password=" + secret + "&ssl=true", secret}
	case 3:
		return value{"Server=" + host + ";Port=3306;Database=" + db + ";Uid=app;Pwd=" + secret + ";", secret}
	}
	return value{"app:" + secret + "@tcp(" + host + ":3306)/" + db + "?parseTime=true", secret}
}

func basicURL(r random) value {
	secret := r.opaque()
	if r.IntN(2) == 0 {
		secret = r.of(letters, 1) + r.of(alnum, r.between(9, 20))
	}
	secret = strings.NewReplacer("+", "%2B", "/", "%2F").Replace(secret)
	user := pick(r, []string{"deploy", "ci", "oauth2", "x-token-auth", "__token__", r.word()})
	return value{pick(r, []string{"https", "https", "http", "ftp"}) + "://" + user + ":" + secret + "@" + r.host() + "/" + r.slug(), secret}
}

var otherRules = []string{
	"huggingface-access-token", "databricks-api-token", "vault-service-token", "age-secret-key", "grafana-service-account-token", "grafana-cloud-api-token",
	"linear-api-key", "notion-api-token", "doppler-api-token", "pulumi-api-token", "rubygems-api-token", "postman-api-token", "perplexity-api-key",
	"sentry-user-token", "sentry-org-token", "hashicorp-tf-api-token", "flyio-access-token", "planetscale-password", "square-access-token", "1password-secret-key",
	"cloudflare-origin-ca-key", "new-relic-user-api-key", "harness-api-key", "dynatrace-api-token", "openshift-user-token", "groq-api-key", "replicate-api-token",
	"supabase-secret-key", "tailscale-key", "xai-api-key", "openrouter-api-key", "atlassian-api-token", "figma-token",
}

// other is a token of a further service, by the prefix that it has so that
// scanners can find it.
func other(r random) string {
	forms := []func() string{
		func() string { return "h" + "f_" + r.of(letters, 34) },
		func() string { return "da" + "pi" + r.hex(32) },
		func() string { return "hv" + "s." + r.of(b64URL, 94) + r.of(alnum, 1) },
		func() string { return "AGE-SECRET-" + "KEY-1" + r.of("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58) },
		func() string { return "gl" + "sa_" + r.of(alnum, 32) + "_" + r.hex(8) },
		func() string { return "lin_" + "api_" + r.of(alnum, 40) },
		func() string { return "nt" + "n_" + r.of(digits, 11) + r.of(alnum, 35) },
		func() string { return "dp" + ".pt." + r.of(alnum, 43) },
		func() string { return "pu" + "l-" + r.hex(40) },
		func() string { return "ruby" + "gems_" + r.hex(48) },
		func() string { return "PM" + "AK-" + r.hex(24) + "-" + r.hex(34) },
		func() string { return "pp" + "lx-" + r.of(alnum, 48) },
		func() string { return "sntr" + "yu_" + r.hex(64) },
		func() string { return r.of(alnum, 14) + ".atlas" + "v1." + r.of(b64URL, 67) },
		func() string { return "psc" + "ale_pw_" + r.of(b64URL, 43) },
		func() string { return "EAA" + "A" + r.of(b64URL, 59) + r.of(alnum, 1) },
		func() string { return "NR" + "AK-" + r.of(upper+digits, 27) },
		func() string { return "gs" + "k_" + r.of(alnum, 52) },
		func() string { return "r8" + "_" + r.of(alnum, 37) },
		func() string { return "sb" + "_secret_" + r.of(b64URL, 22) + "_" + r.of(b64URL, 7) + r.of(alnum, 1) },
		func() string { return "ts" + "key-auth-k" + r.of(alnum, 11) + "CNTRL-" + r.of(alnum, 32) },
		func() string { return "xa" + "i-" + r.of(alnum, 80) },
		func() string { return "sk-or" + "-v1-" + r.hex(64) },
		func() string { return "ATA" + "TT3" + r.of(b64URL, 177) + "=" + r.of(hexLower, 8) },
		func() string { return "fi" + "gd_" + r.of(b64URL, 39) + r.of(alnum, 1) },
		func() string { return "dt0" + "c01." + r.of(base32, 24) + "." + r.of(base32, 64) },
		func() string { return "sha" + "256~" + r.of(b64URL, 42) + r.of(alnum, 1) },
	}
	return pick(r, forms)()
}
