package detection

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// A place is where a secret is found in real life. write returns the file's
// path, its text with the secret in it, and how the secret is written there.
type place struct {
	name  string
	write func(r random, key name, v value) (path, text, written string)
}

// A name is what a secret is called, in words.
type name string

func (n name) snake() string { return strings.ReplaceAll(string(n), " ", "_") }
func (n name) kebab() string { return strings.ReplaceAll(string(n), " ", "-") }
func (n name) upper() string { return strings.ToUpper(n.snake()) }
func (n name) Camel() string {
	var b strings.Builder
	for _, w := range strings.Fields(string(n)) {
		b.WriteString(strings.ToUpper(w[:1]) + w[1:])
	}
	return b.String()
}
func (n name) camel() string { c := n.Camel(); return strings.ToLower(c[:1]) + c[1:] }

// settings are what else a configuration holds: name and value.
func settings(r random, n int) [][2]string {
	list := make([][2]string, n)
	for i := range list {
		list[i] = pick(r, []func() [2]string{
			func() [2]string { return [2]string{"PORT", fmt.Sprint(r.between(3000, 9999))} },
			func() [2]string { return [2]string{"LOG_LEVEL", pick(r, []string{"info", "debug", "warn"})} },
			func() [2]string { return [2]string{"NODE_ENV", "production"} },
			func() [2]string { return [2]string{"AWS_REGION", "eu-west-" + r.of("123", 1)} },
			func() [2]string { return [2]string{"DATABASE_HOST", r.host()} },
			func() [2]string { return [2]string{"API_BASE_URL", "https://" + r.host() + "/v2"} },
			func() [2]string { return [2]string{"GIT_COMMIT", r.hex(40)} },
			func() [2]string { return [2]string{"S3_BUCKET", r.slug() + "-assets"} },
			func() [2]string { return [2]string{"REQUEST_TIMEOUT", fmt.Sprintf("%ds", r.between(1, 60))} },
			func() [2]string { return [2]string{"OAUTH_REDIRECT_URI", "https://" + r.host() + "/callback"} },
			func() [2]string { return [2]string{"FEATURE_FLAGS", r.slug() + "," + r.slug()} },
			func() [2]string { return [2]string{"SECRETS_PROVIDER", "vault"} },
			func() [2]string { return [2]string{"TOKEN_TTL", fmt.Sprint(r.between(300, 90000))} },
			func() [2]string { return [2]string{"SERVICE_ID", r.uuid()} },
			func() [2]string { return [2]string{"IMAGE", r.host() + "/" + r.slug() + "@sha256:" + r.hex(64)} },
		})()
	}
	return list
}

// around puts lines of settings before and after one.
func around(r random, line string, setting func(key, value string) string) string {
	var b strings.Builder
	list := settings(r, r.between(2, 7))
	at := r.IntN(len(list) + 1)
	for i, s := range list {
		if i == at {
			b.WriteString(line)
		}
		b.WriteString(setting(s[0], s[1]))
	}
	if at == len(list) {
		b.WriteString(line)
	}
	return b.String()
}

// lines is the usual place: one line among others. format has %s for the key
// and %s for the value.
func lines(path, head, format string, key func(name) string) func(random, name, value) (string, string, string) {
	return func(r random, k name, v value) (string, string, string) {
		return path, head + around(r, fmt.Sprintf(format, key(k), v.text), func(key, value string) string {
			return fmt.Sprintf(format, key, value)
		}), v.secret
	}
}

// strings are lines with the value between quotation marks.
func stringLines(path, head, format string, key func(name) string) func(random, name, value) (string, string, string) {
	return func(r random, k name, v value) (string, string, string) {
		return path, head + around(r, fmt.Sprintf(format, key(k), quoted(v.text)), func(key, value string) string {
			return fmt.Sprintf(format, key, value)
		}), quoted(v.secret)
	}
}

// alone is a text with only the secret. format has %[1]s for the key, %[2]s for
// the value and %[3]s for a host.
func alone(path, format string, key func(name) string) func(random, name, value) (string, string, string) {
	return func(r random, k name, v value) (string, string, string) {
		return path, fmt.Sprintf(format, key(k), quoted(v.text), r.host(), r.date()+"T"+r.clock()), quoted(v.secret)
	}
}

func encoded(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// common are the places for secrets of one line.
var common = []place{
	{".env", lines(".env", "", "%s=%s\n", name.upper)},
	{".env, quoted", stringLines(".env.production", "# production\n", "%s=\"%s\"\n", name.upper)},
	{"shell export", lines("deploy.sh", "#!/bin/sh\nset -eu\n", "export %s=%s\n", name.upper)},
	{"shell export, quoted", lines("scripts/env.sh", "#!/bin/bash\n", "export %s='%s'\n", name.upper)},
	{"docker compose list", lines("docker-compose.yml", "services:\n  web:\n    environment:\n", "      - %s=%s\n", name.upper)},
	{"docker compose map", lines("compose.yaml", "services:\n  web:\n    environment:\n", "      %s: %s\n", name.upper)},
	{"YAML", lines("config/production.yaml", "app:\n", "  %s: %s\n", name.snake)},
	{"YAML, quoted", stringLines("application.yml", "app:\n", "  %s: \"%s\"\n", name.kebab)},
	{"JSON", func(r random, k name, v value) (string, string, string) {
		return "config.json", "{\n" + around(r, fmt.Sprintf("  %q: \"%s\",\n", k.camel(), quoted(v.text)), func(k, v string) string {
			return fmt.Sprintf("  %q: \"%s\",\n", k, v)
		}) + "  \"version\": 1\n}\n", quoted(v.secret)
	}},
	{"JSON on one line", func(r random, k name, v value) (string, string, string) {
		return "settings.json", "{" + around(r, fmt.Sprintf("%q:\"%s\",", k.snake(), quoted(v.text)), func(k, v string) string {
			return fmt.Sprintf("%q:\"%s\",", k, v)
		}) + "\"version\":1}\n", quoted(v.secret)
	}},
	{"JSON within JSON", func(r random, k name, v value) (string, string, string) {
		inner := fmt.Sprintf(`{"%s":"%s","user":"app","host":"%s"}`, k.snake(), quoted(v.text), r.host())
		return "secret.json", fmt.Sprintf("{\n  \"ARN\": \"arn:aws:secretsmanager:eu-west-1:%s:secret:%s\",\n  \"Name\": %q,\n  \"VersionId\": %q,\n  \"SecretString\": \"%s\"\n}\n",
			r.of(digits, 12), r.slug(), r.slug(), r.uuid(), quoted(inner)), quoted(quoted(v.secret))
	}},
	{"TOML", stringLines("config.toml", "[app]\n", "%s = \"%s\"\n", name.snake)},
	{"INI", lines("settings.ini", "[app]\n", "%s = %s\n", name.snake)},
	{"Java properties", lines("src/main/resources/application.properties", "", "app.%s=%s\n", func(n name) string { return strings.ReplaceAll(string(n), " ", ".") })},
	{"Go", stringLines("internal/config/config.go", "package config\n\nconst (\n", "\t%s = \"%s\"\n", name.camel)},
	{"Go struct", stringLines("client_test.go", "package client\n\nvar cfg = Config{\n", "\t%s: \"%s\",\n", name.Camel)},
	{"JavaScript", stringLines("src/config.js", "'use strict';\n", "const %s = \"%s\";\n", name.camel)},
	{"JavaScript object", lines("lib/client.ts", "export const client = new Client({\n", "  %s: '%s',\n", name.camel)},
	{"JavaScript fallback", lines("src/server.js", "const express = require('express');\n", "const value = process.env.%s || '%s';\n", name.upper)},
	{"Python", stringLines("settings.py", "import os\n\n", "%s = \"%s\"\n", name.upper)},
	{"Python argument", lines("client.py", "client = Client(\n", "    %s='%s',\n", name.snake)},
	{"Python environment", lines("tests/conftest.py", "import os\n", "os.environ['%s'] = '%s'\n", name.upper)},
	{"Ruby", lines("config/initializers/app.rb", "Rails.application.configure do\n", "  config.%s = '%s'\n", name.snake)},
	{"PHP", lines("config/services.php", "<?php return [\n", "  '%s' => '%s',\n", name.snake)},
	{"Java", stringLines("src/main/java/App.java", "public final class App {\n", "  private static final String %s = \"%s\";\n", name.upper)},
	{"C#", stringLines("Startup.cs", "public class Startup {\n", "    private const string %s = \"%s\";\n", name.Camel)},
	{"Rust", stringLines("src/main.rs", "use std::env;\n", "const %s: &str = \"%s\";\n", name.upper)},
	{"Dockerfile", lines("Dockerfile", "FROM node:22-alpine\nWORKDIR /app\n", "ENV %s=%s\n", name.upper)},
	{"Kubernetes env", stringLines("k8s/deployment.yaml", "apiVersion: apps/v1\nkind: Deployment\nspec:\n  containers:\n  - name: web\n    env:\n", "    - name: %s\n      value: \"%s\"\n", name.upper)},
	{"Kubernetes Secret, base64", func(r random, k name, v value) (string, string, string) {
		head := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\ntype: Opaque\ndata:\n", r.slug(), r.word())
		return "k8s/secret.yaml", head + fmt.Sprintf("  %s: %s\n  LOG_LEVEL: %s\n", k.upper(), encoded(v.text), encoded("info")), encoded(v.text)
	}},
	{"kubectl get secret -o json", func(r random, k name, v value) (string, string, string) {
		return "secret.json", fmt.Sprintf("{\n    \"apiVersion\": \"v1\",\n    \"data\": {\n        %q: %q\n    },\n    \"kind\": \"Secret\",\n    \"metadata\": {\n        \"name\": %q,\n        \"resourceVersion\": %q,\n        \"uid\": %q\n    },\n    \"type\": \"Opaque\"\n}\n",
			k.kebab(), encoded(v.text), r.slug(), r.of("123456789", 8), r.uuid()), encoded(v.text)
	}},
	{"Kubernetes Secret, stringData", stringLines("k8s/secrets.yml", "apiVersion: v1\nkind: Secret\nstringData:\n", "  %s: \"%s\"\n", name.kebab)},
	{"GitHub workflow", lines(".github/workflows/ci.yml", "jobs:\n  test:\n    env:\n", "      %s: %s\n", name.upper)},
	{"Terraform variables", stringLines("prod.tfvars", "", "%s = \"%s\"\n", name.snake)},
	{"Terraform default", alone("variables.tf", "variable \"%[1]s\" {\n  type    = string\n  default = \"%[2]s\"\n}\n", name.snake)},
	{"systemd unit", stringLines("web.service", "[Service]\nExecStart=/usr/bin/web\n", "Environment=\"%s=%s\"\n", name.upper)},
	{"docker run", func(r random, k name, v value) (string, string, string) {
		return "run.sh", fmt.Sprintf("docker run -d --name %s -e LOG_LEVEL=info -e %s=%s -p 8080:8080 %s:%s\n", r.slug(), k.upper(), v.text, r.slug(), r.version()), v.secret
	}},
	{"command's flag", func(r random, k name, v value) (string, string, string) {
		return "Makefile", fmt.Sprintf("login:\n\t./bin/%s login --%s '%s' --host %s\n", r.word(), k.kebab(), v.text, r.host()), v.secret
	}},
	{"command's flag with =", func(r random, k name, v value) (string, string, string) {
		return "history.txt", fmt.Sprintf("cd %s\n%s deploy --%s=%s --verbose\nls -la\n", r.slug(), r.word(), k.kebab(), v.text), v.secret
	}},
	{"printenv", func(r random, k name, v value) (string, string, string) {
		return "env.txt", "SHELL=/bin/bash\nPWD=/srv/" + r.slug() + "\n" + around(r, k.upper()+"="+v.text+"\n", func(k, v string) string { return k + "=" + v + "\n" }) +
			"PATH=/usr/local/bin:/usr/bin:/bin\n_=/usr/bin/env\n", v.secret
	}},
	{"log line", func(r random, k name, v value) (string, string, string) {
		return "app.log", fmt.Sprintf("%sT%sZ INFO  starting %s version=%s\n%[1]sT%[2]sZ DEBUG config loaded host=%[5]s %[6]s=%[7]s retries=3\n%[1]sT%[2]sZ INFO  request id=%[8]s status=200\n",
			r.date(), r.clock(), r.slug(), r.version(), r.host(), k.snake(), v.text, r.uuid()), v.secret
	}},
	{"JSON log line", func(r random, k name, v value) (string, string, string) {
		return "app.log", fmt.Sprintf("{\"level\":\"debug\",\"ts\":%q,\"msg\":\"config\",\"trace_id\":%q,\"%s\":\"%s\"}\n", r.date()+"T"+r.clock()+"Z", r.hex(32), k.camel(), quoted(v.text)), quoted(v.secret)
	}},
	{"Markdown", alone("docs/RUNBOOK.md", "# Deploying\n\n1. Log in to %[3]s.\n2. Set the %[1]s: `%[2]s`\n3. Run `make deploy`.\n", func(n name) string { return string(n) })},
	{"chat", alone("notes.txt", "hey, for %[3]s the %[1]s is %[2]s until monday\n", func(n name) string { return string(n) })},
	{"XML", alone("web.config", "<configuration>\n  <appSettings>\n    <add key=\"Host\" value=\"%[3]s\" />\n    <add key=\"%[1]s\" value=\"%[2]s\" />\n  </appSettings>\n</configuration>\n", name.Camel)},
	{"XML element", alone("settings.xml", "<server>\n  <id>%[3]s</id>\n  <%[1]s>%[2]s</%[1]s>\n</server>\n", name.camel)},
	{"SQL", alone("seed.sql", "INSERT INTO settings (name, value, updated) VALUES ('%[1]s', '%[2]s', '%[4]s');\n", name.snake)},
	{"diff", func(r random, k name, v value) (string, string, string) {
		return "change.patch", fmt.Sprintf("diff --git a/config.py b/config.py\nindex %s..%s 100644\n--- a/config.py\n+++ b/config.py\n@@ -1,3 +1,4 @@\n import os\n-%s = os.environ[\"%[3]s\"]\n+%[3]s = \"%[4]s\"\n", r.hex(9), r.hex(9), k.upper(), quoted(v.text)), quoted(v.secret)
	}},
	{"transcript of tool calls", func(r random, k name, v value) (string, string, string) {
		call := fmt.Sprintf("export %s=%s && ./deploy.sh", k.upper(), v.text)
		return "session.jsonl", fmt.Sprintf("{\"type\":\"tool_use\",\"id\":\"toolu_%s\",\"name\":\"Bash\",\"input\":{\"command\":\"%s\",\"description\":\"Deploy\"}}\n", r.of(alnum, 24), quoted(call)), quoted(v.secret)
	}},
	{"stack trace", alone("error.log", "Error: request to https://%[3]s failed: 401 (%[1]s=%[2]s)\n    at Client.send (/app/node_modules/client/index.js:120:15)\n    at process.processTicksAndRejections (node:internal/process/task_queues:95:5)\n", name.snake)},
}

// headers are the places for what is sent with HTTP.
var headers = []place{
	{"curl -H Bearer", alone("smoke.sh", "curl -fsS -H \"Authorization: Bearer %[2]s\" https://%[3]s/v1/me\n", name.snake)},
	{"curl -H Bearer, last", alone("smoke.sh", "curl -fsS https://%[3]s/v1/me \\\n  -H 'Accept: application/json' \\\n  -H 'Authorization: Bearer %[2]s'\n", name.snake)},
	{"curl X-Api-Key", alone("smoke.sh", "curl -X POST https://%[3]s/v1/items -H 'X-API-Key: %[2]s' -d '{}'\n", name.snake)},
	{"curl -u", alone("smoke.sh", "curl -s -u admin:%[2]s https://%[3]s/api/health\n", name.snake)},
	{"curl -u, quoted", alone("smoke.sh", "curl --user 'deploy:%[2]s' https://%[3]s/api/health\n", name.snake)},
	{"curl -v", alone("curl.log", "> GET /v1/me HTTP/2\n> Host: %[3]s\n> user-agent: curl/8.5.0\n> accept: */*\n> authorization: Bearer %[2]s\n>\n< HTTP/2 200\n", name.snake)},
	{"curl -v, Basic", func(r random, k name, v value) (string, string, string) {
		basic := encoded("deploy:" + v.text)
		return "curl.log", fmt.Sprintf("* Server auth using Basic with user 'deploy'\n> GET /v2/ HTTP/1.1\n> Host: %s\n> Authorization: Basic %s\n> User-Agent: curl/8.5.0\n", r.host(), basic), basic
	}},
	{"HTTP file", alone("api.http", "GET https://%[3]s/v1/me\nAuthorization: Bearer %[2]s\nAccept: application/json\n", name.snake)},
	{"logged headers, JSON", alone("app.log", "{\"level\":\"debug\",\"time\":\"%[4]s\",\"headers\":{\"host\":\"%[3]s\",\"authorization\":\"Bearer %[2]s\",\"accept\":\"*/*\"}}\n", name.snake)},
	{"logged headers, Python", alone("app.log", "%[4]s DEBUG send: headers={'Host': '%[3]s', 'Authorization': 'Bearer %[2]s'}\n", name.snake)},
	{"logged headers, Go", alone("app.log", "%[4]s request header=map[Accept:[*/*] Authorization:[Bearer %[2]s] Host:[%[3]s]]\n", name.snake)},
	{"JavaScript fetch", alone("api.js", "const res = await fetch(`https://%[3]s/v1`, {\n  headers: { Authorization: 'Bearer %[2]s', Accept: 'application/json' },\n});\n", name.snake)},
	{"Python requests", alone("api.py", "r = requests.get(\"https://%[3]s/v1\", headers={\"Authorization\": \"Bearer %[2]s\"})\n", name.snake)},
	{"Go", alone("api.go", "\treq.Header.Set(\"Authorization\", \"Bearer %[2]s\")\n\treq.Host = \"%[3]s\"\n", name.snake)},
	{"Python X-Api-Key", alone("api.py", "r = requests.get(\"https://%[3]s/v1\", headers={\"X-Api-Key\": \"%[2]s\"})\n", name.snake)},
	{"query parameter", alone("access.log", "10.0.3.7 - - [%[4]s] \"GET /v1/export?format=csv&access_token=%[2]s HTTP/1.1\" 200 5120\n", name.snake)},
	{"cookie", alone("har.json", "{\"name\": \"Cookie\", \"value\": \"theme=dark; session=%[2]s; lang=en\", \"host\": \"%[3]s\"}\n", name.snake)},
	{"docker config.json", func(r random, _ name, v value) (string, string, string) {
		auth := encoded("deploy:" + v.text)
		return ".docker/config.json", fmt.Sprintf("{\n\t\"auths\": {\n\t\t\"https://%s/v1/\": {\n\t\t\t\"auth\": %q\n\t\t}\n\t}\n}\n", r.host(), auth), auth
	}},
	{".npmrc", alone(".npmrc", "registry=https://%[3]s/npm/\n//%[3]s/npm/:_authToken=%[2]s\nalways-auth=true\n", name.snake)},
	{".netrc", alone(".netrc", "machine %[3]s\n  login deploy\n  password %[2]s\n", name.snake)},
}

// blocks are the places for secrets of several lines.
var blocks = []place{
	{"file", func(r random, k name, v value) (string, string, string) {
		return "deploy/" + k.snake(), v.text, v.secret
	}},
	{"file, shown by cat -n", func(r random, k name, v value) (string, string, string) {
		var b strings.Builder
		for i, line := range strings.Split(strings.TrimSpace(v.text), "\n") {
			fmt.Fprintf(&b, "%6d\t%s\n", i+1, line)
		}
		return "out.txt", b.String(), v.secret
	}},
	{"file, its first 400 bytes", func(r random, k name, v value) (string, string, string) {
		at := strings.Index(v.text, "-----BEGIN")
		return "out.txt", v.text[:min(len(v.text), at+400)], v.secret
	}},
	{"CRLF", func(r random, k name, v value) (string, string, string) {
		return k.snake() + ".txt", strings.ReplaceAll(v.text, "\n", "\r\n"), v.secret
	}},
	{"JSON", func(r random, k name, v value) (string, string, string) {
		return "config.json", fmt.Sprintf("{\n  \"host\": %q,\n  %q: \"%s\"\n}\n", r.host(), k.camel(), quoted(v.text)), quoted(v.secret)
	}},
	{"JSON within JSON", func(r random, k name, v value) (string, string, string) {
		inner := fmt.Sprintf(`{"%s":"%s"}`, k.camel(), quoted(v.text))
		return "secret.json", fmt.Sprintf("{\n  \"Name\": %q,\n  \"SecretString\": \"%s\"\n}\n", r.slug(), quoted(inner)), quoted(quoted(v.secret))
	}},
	{"YAML block", func(r random, k name, v value) (string, string, string) {
		return "values.yaml", "tls:\n  host: " + r.host() + "\n  " + k.snake() + ": |\n    " + strings.ReplaceAll(strings.TrimSpace(v.text), "\n", "\n    ") + "\n  port: 443\n", v.secret
	}},
	{"YAML string", func(r random, k name, v value) (string, string, string) {
		return "config.yml", "tls:\n  host: " + r.host() + "\n  " + k.snake() + ": \"" + quoted(v.text) + "\"\n", quoted(v.secret)
	}},
	{"Kubernetes Secret, base64", func(r random, k name, v value) (string, string, string) {
		return "k8s/tls.yaml", "apiVersion: v1\nkind: Secret\nmetadata:\n  name: " + r.slug() + "\ntype: kubernetes.io/tls\ndata:\n  tls.key: " + encoded(v.text) + "\n", encoded(v.text)
	}},
	{"Kubernetes Secret, stringData", func(r random, k name, v value) (string, string, string) {
		return "k8s/tls.yaml", "apiVersion: v1\nkind: Secret\nstringData:\n  " + k.kebab() + ": |\n    " + strings.ReplaceAll(strings.TrimSpace(v.text), "\n", "\n    ") + "\n", v.secret
	}},
	{".env, one line", func(r random, k name, v value) (string, string, string) {
		return ".env", around(r, k.upper()+"=\""+quoted(v.text)+"\"\n", func(k, v string) string { return k + "=" + v + "\n" }), quoted(v.secret)
	}},
	{".env, lines", func(r random, k name, v value) (string, string, string) {
		return ".env", around(r, k.upper()+"='"+v.text+"'\n", func(k, v string) string { return k + "=" + v + "\n" }), v.secret
	}},
	{".env, base64", func(r random, k name, v value) (string, string, string) {
		return ".env", around(r, k.upper()+"="+encoded(v.text)+"\n", func(k, v string) string { return k + "=" + v + "\n" }), encoded(v.text)
	}},
	{"Go", func(r random, k name, v value) (string, string, string) {
		return "keys_test.go", "package keys\n\nconst " + k.camel() + " = `" + v.text + "`\n", v.secret
	}},
	{"Python", func(r random, k name, v value) (string, string, string) {
		return "settings.py", k.upper() + ` = """` + v.text + `"""` + "\n", v.secret
	}},
	{"JavaScript, joined lines", func(r random, k name, v value) (string, string, string) {
		parts := strings.Split(strings.TrimSpace(v.text), "\n")
		for i, p := range parts {
			parts[i] = "  '" + p + "\\n'"
		}
		return "keys.js", "const " + k.camel() + " =\n" + strings.Join(parts, " +\n") + ";\n", v.secret
	}},
	{"Terraform heredoc", func(r random, k name, v value) (string, string, string) {
		return "main.tf", "resource \"tls\" \"x\" {\n  " + k.snake() + " = <<EOT\n" + v.text + "EOT\n}\n", v.secret
	}},
	{"shell heredoc", func(r random, k name, v value) (string, string, string) {
		return "setup.sh", "#!/bin/sh\ncat >/root/.ssh/id <<'EOF'\n" + v.text + "EOF\nchmod 600 /root/.ssh/id\n", v.secret
	}},
	{"diff", func(r random, k name, v value) (string, string, string) {
		return "x.patch", "--- /dev/null\n+++ b/" + k.snake() + "\n@@ -0,0 +1,28 @@\n+" + strings.ReplaceAll(strings.TrimSpace(v.text), "\n", "\n+") + "\n", v.secret
	}},
	{"JSON log line", func(r random, k name, v value) (string, string, string) {
		return "app.log", fmt.Sprintf("{\"level\":\"debug\",\"msg\":\"loaded\",\"trace\":%q,\"%s\":\"%s\"}\n", r.hex(32), k.camel(), quoted(v.text)), quoted(v.secret)
	}},
	{"transcript of tool calls", func(r random, k name, v value) (string, string, string) {
		return "session.jsonl", fmt.Sprintf("{\"type\":\"tool_use\",\"id\":\"toolu_%s\",\"name\":\"Write\",\"input\":{\"file_path\":\"/srv/x\",\"content\":\"%s\"}}\n", r.of(alnum, 24), quoted(v.text)), quoted(v.secret)
	}},
	{"URL-encoded form", func(r random, k name, v value) (string, string, string) {
		enc := strings.NewReplacer("\n", "%0A", " ", "+", "+", "%2B", "/", "%2F", "=", "%3D", "{", "%7B", "}", "%7D", "\"", "%22", ":", "%3A", ",", "%2C", "@", "%40", "%", "%25", "\\", "%5C")
		return "req.txt", "name=" + r.slug() + "&" + k.snake() + "=" + enc.Replace(v.text) + "&ok=1\n", enc.Replace(v.secret)
	}},
}
