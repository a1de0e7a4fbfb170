package engine_test

import (
	"strings"
	"testing"
)

// value and opaque are a password and a key. They are put together here, so that
// no scanner takes this file for a leak.
const (
	value  = "Vel" + "vet-Harb0r38"
	opaque = "3f9a1c" + "77d0be42a6" + "9912e3f4ab" + "58c6d1"
)

// TestAssignments: what is assigned to the name of a secret is found however
// that is written.
func TestAssignments(t *testing.T) {
	for _, text := range []string{
		"DB_PASSWORD=%s", "db_password: %s\n", "password = '%s'", `"password":"%s"`, `{\"smtpPassword\":\"%s\"}`, `{\\\"password\\\":\\\"%s\\\"}`,
		"os.environ['DB_PASSWORD'] = '%s'", "const Password: &str = \"%s\";", "password: string = '%s'", "<password>%s</password>",
		`<add key="Password" value="%s" />`, "- name: DB_PASSWORD\n  value: \"%s\"\n", "variable \"password\" {\n  type    = string\n  default = \"%s\"\n}",
		"VALUES ('password', '%s')", "the password is %s until", "tool --db-password '%s' x", "tool --password %s", "(password=%s)",
		"process.env.PASSWORD || '%s'", "auth: { user: 'x', pass: '%s' }", "PASSWORD_PROD=%s", "-e PGPASSWORD=%s -d",
	} {
		found1(t, strings.ReplaceAll(text, "%s", value), "", "generic-password", value)
	}
	for _, text := range []string{
		"- name: API_KEY\n  value: %s\n", "the api key is %s\n", "tool --api-key %s x", "tool --token '%s'", "the token is %s", "token ?? '%s'",
		"variable \"auth_token\" {\n  default = \"%s\"\n}", "SECRET_KEY_BASE ?? '%s'",
	} {
		found1(t, strings.ReplaceAll(text, "%s", opaque), "", "generic-secret", opaque)
	}
	// Too regular for gitleaks' own rule, which takes over where it can.
	found1(t, "ENCRYPTION_KEY=165fa8d97773f326"+"627664a9a33d6116", "", "generic-secret", "165fa8d97773f326"+"627664a9a33d6116")
	found1(t, "api_key=\"q8Zr2LmX0vTn5KwJ7cYb\"", "", "generic-api-key", "q8Zr2LmX0vTn5KwJ7cYb")
	found1(t, "GITHUB_TOKEN="+githubToken, "", "github-pat", githubToken)
}

// TestNoAssignments: code, configuration and documents name secrets all the time
// without having one.
func TestNoAssignments(t *testing.T) {
	for _, text := range []string{
		"password := os.Getenv(\"DB_PASSWORD2\")", "password: ${DB_PASSWORD}", "DB_PASSWORD=$PASSWORD_1", "password=changeme123", "password: <your-password-1>",
		"Password string `json:\"password1\"`", "password = user2.password", "password=PASSWORD_V2_HASH", "password: vault:secret/data/app1#pw", "password=p@ssw0rd",
		"the password is required", "for a password: Argon2id", "PrivateKey = ed25519.PrivateKey", "bypass=Tr4ffic-Rule9", "passwords: 12345678901", "password: /run/secrets/db1", "password=file:/run/secrets/db1", "smtp_password: test1234",
		"\"password\": \"\\u003cyour-token1\\u003e\"",
		"token_id: " + opaque, "\"access_key_id\": \"" + opaque + "\"", "checksum/secret: " + opaque, "page_token=" + opaque, "\"ClientToken\": \"" + opaque + "\"",
		"secret: projects/acme-1/secrets/db-password-2/versions/latest", "api_key = config.Services[2]", "token: KeyAlgoED25519ForTheServer",
		"example.com/go-auth v1.2.3 h1:3sf4Ouh4AxxqT/uSIl//gNrW1rziAhtsCIMPX2zoHzo=", "curl -H \"Authorization: Bearer your_api_key\" https://x",
	} {
		if found := scan(t, text+"\n", ""); len(found) != 0 {
			t.Errorf("%s: %v", text, found)
		}
	}
}

func TestTokens(t *testing.T) {
	for rule, parts := range map[string][3]string{ // what is before, the secret, what is after
		"google-oauth":                     {"x ", "GOC" + "SPX-Ab3_dE6gH9jK2mN5pQ8sT1vWxY4z", "\n"},
		"azure-shared-key":                 {"AccountName=x;Account" + "Key=", "q2Vx8Lm0Zr5Tn7Kw3Yb9Fd1Gs4Hj6Pc8Ua2Ei5Oy0Rt=", ";"},
		"azure-shared-access-signature":    {"https://x/?sv=1&sig=", "q2Vx8Lm0Zr5Tn7Kw%2B3Yb9Fd1Gs4Hj6Pc8Ua2Ei5Oy0%3D", "&sp=r"},
		"stripe-webhook-secret":            {"", "wh" + "sec_q2Vx8Lm0Zr5Tn7Kw3Yb9Fd1Gs4Hj6Pc8", "<"},
		"dockerhub-token":                  {"docker login -p ", "dck" + "r_pat_q2Vx8Lm0Zr5Tn7Kw3Yb9Fd1Gs4H", " -u x"},
		"docker-config-auth":               {`{"auths":{"x":{"auth": "`, "ZGVwbG95OnEyVng4TG0wWnI1", `"}}}`},
		"npmrc-auth-token":                 {"//registry.example.com/:_auth" + "Token=", "q2Vx8Lm0-Zr5T-n7Kw-3Yb9Fd1Gs4Hj", "\n"},
		"discord-bot-token":                {"discord ", "MTE3NDUyOTM4NDcxNjUyOTM4" + ".GxYz12.q2Vx8Lm0Zr5Tn7Kw3Yb9Fd1Gs4Hj6Pc8Ua2Ei5", "'"},
		"discord-webhook-url":              {"https://discord.com/api/webhooks/" + "117452938471652938/", strings.Repeat("q2Vx8Lm0_Zr5Tn7Kw-", 4)[:68], "\""},
		"telegram-bot-token":               {"https://api.telegram.org/bot", "6127394815" + ":AA" + "Hq2Vx8Lm0Zr5Tn7Kw3Yb9Fd1Gs4Hj6Pc8", "/getMe"},
		"mailgun-api-key":                  {"mailgun ", "3f9a1c77d0be42a69912e3f4ab58c6d1-" + "7d0be42a-69912e3f", " "},
		"openrouter-api-key":               {"", "sk-or" + "-v1-" + strings.Repeat("3f9a1c77d0be42a6", 4), ","},
		"generic-authorization-header":     {"headers={'Authorization': 'Bearer ", "q2Vx8Lm0Zr5Tn7Kw3Yb9", "'}"},
		"generic-url-parameter":            {"GET /x?a=1&access_token=", "q2Vx8Lm0Zr5Tn7Kw3Yb9", "&b=2"},
		"connection-parameter-password":    {"app:", value, "@tcp(db:3306)/x"},
		"connection-parameter-password ":   {"jdbc:postgresql://x/y?user=a&password=", value, "&ssl=true"},
		"connection-parameter-password  ":  {"host=x user=app password=", value, " dbname=x"},
		"connection-parameter-password   ": {"Server=x;Pwd=", value, ";"},
		"netrc-password":                   {"machine x.com login joe password ", value, "\n"},
	} {
		found1(t, parts[0]+parts[1]+parts[2], "", strings.TrimSpace(rule), parts[1])
	}
}
