package engine

import (
	"regexp"

	"github.com/zricethezav/gitleaks/v8/config"
)

// tokens find the secrets of providers that gitleaks has no rule for, or an
// outdated one, by the form that the provider gave them.
func tokens() []config.Rule {
	rule := func(id, what, regex string, keywords ...string) config.Rule {
		return config.Rule{RuleID: id, Description: "Found " + what + ".", Regex: regexp.MustCompile(regex), Entropy: 3, Keywords: keywords}
	}
	return []config.Rule{
		rule("google-oauth", "a Google OAuth client secret or access token", `\b(GOCSPX-[\w-]{28}|ya29\.[\w-]{60,})`, "gocspx-", "ya29."),
		rule("azure-shared-key", "the key of an Azure account in a connection string", `(?i)(?:AccountKey|SharedAccessKey)=([a-z0-9+/]{43}=|[a-z0-9+/]{86}==)`, "accountkey=", "sharedaccesskey="),
		rule("azure-shared-access-signature", "an Azure shared access signature", `(?i)[?&;]sig=((?:[a-z0-9+/]|%2[bf]){40,120}(?:=|%3d))`, "sig="),
		rule("stripe-webhook-secret", "the secret of a Stripe webhook", `\b(whsec_[A-Za-z0-9+/]{32,64}={0,2})`, "whsec_"),
		rule("dockerhub-token", "a Docker Hub access token", `\b(dckr_(?:pat|oat)_[\w-]{27,40})`, "dckr_"),
		rule("docker-config-auth", "a registry's password in Docker's configuration", `"auth\\?"\s*:\s*\\?"([A-Za-z0-9+/]{16,}={0,2})\\?"`, "auths"),
		rule("npmrc-auth-token", "a registry's token in .npmrc", `:_(?:authToken|auth|password)\s*=\s*["']?([\w.~+/-]{16,}={0,2})`, ":_auth", ":_password"),
		rule("discord-bot-token", "a Discord bot token", `\b([MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,40})`, "discord", "bot"),
		rule("discord-webhook-url", "a Discord webhook", `discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\d{17,20}/([\w-]{60,80})`, "/webhooks/"),
		rule("telegram-bot-token", "a Telegram bot token", `(?:\b|bot)(\d{8,10}:AA[\w-]{33})(?:[^\w-]|$)`, ":aa"),
		rule("mailgun-api-key", "a Mailgun API key", `\b([0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8})\b`, "mailgun", "mg_", "api:"),
		rule("groq-api-key", "a Groq API key", `\b(gsk_[A-Za-z0-9]{52})\b`, "gsk_"),
		rule("replicate-api-token", "a Replicate API token", `\b(r8_[A-Za-z0-9]{37})\b`, "r8_"),
		rule("supabase-secret-key", "a Supabase secret key", `\b(sb_secret_[\w-]{22}_[\w-]{8}|sbp_[a-f0-9]{40})`, "sb_secret_", "sbp_"),
		rule("tailscale-key", "a Tailscale key", `\b(tskey-[a-z]+-\w{6,32}-\w{16,64})\b`, "tskey-"),
		rule("xai-api-key", "an xAI API key", `\b(xai-[A-Za-z0-9]{80})\b`, "xai-"),
		rule("openrouter-api-key", "an OpenRouter API key", `\b(sk-or-v1-[0-9a-f]{64})\b`, "sk-or-v1-"),
		rule("figma-token", "a Figma access token", `\b(fig[duo]_[\w-]{40})`, "figd_", "figu_", "figo_"),
	}
}

// transported find what is sent with a request or kept for one.
func transported() []config.Rule {
	return []config.Rule{
		{
			RuleID:      "generic-authorization-header",
			Description: "Found the credentials of an HTTP request.",
			Regex: regexp.MustCompile(`(?i)(?:authorization["'\])\s\\:=,({\[]{1,8}(?:bearer|basic|token|bot|apikey)[ +]{1,2}` +
				`|\bx-(?:api|auth|access|vault|gitlab|private)-(?:key|token)["'\])\s\\:=,({\[]{1,8})([\w.~+/-]{16,}={0,2})` + shut),
			Entropy:    3.0,
			Keywords:   []string{"authorization", "x-api-key", "x-auth-key", "x-auth-token", "x-access-token", "x-vault-token", "x-gitlab-token", "x-private-token"},
			Allowlists: []*config.Allowlist{placeholders, notSecrets},
		},
		{
			RuleID:      "generic-url-parameter",
			Description: "Found a token in a URL's query.",
			Regex:       regexp.MustCompile(`(?i)[?&](?:access_token|api_?key|auth_?token|client_secret|private_token|token|password|secret)=([\w.~%+/-]{16,}={0,2})` + shut),
			Entropy:     3.2,
			Keywords:    []string{"token=", "apikey=", "api_key=", "secret=", "password="},
			Allowlists:  []*config.Allowlist{placeholders, notSecrets},
		},
		{
			RuleID:      "connection-parameter-password",
			Description: "Found a password among the parameters of a connection.",
			// As in ADO.NET, JDBC and libpq, and in what Go's MySQL driver takes.
			Regex: regexp.MustCompile(`(?i)(?:[;?&]|\b(?:user|dbname|host|port)=\S{1,100} )(?:password|pwd)=([^\s;&'"\x60<>{}\\]{6,100})(?:[;&\s'"\\]|$)` +
				`|[\w.-]:([^\s:@/"'\x60<>{}]{4,100})@(?:tcp|unix)\(`),
			Entropy:    2.3,
			Keywords:   []string{"password=", "pwd=", "@tcp(", "@unix("},
			Allowlists: []*config.Allowlist{placeholders},
		},
		{
			RuleID:      "netrc-password",
			Description: "Found a password in a .netrc file.",
			Regex:       regexp.MustCompile(`(?i)\bmachine\s+\S+\s+login\s+\S+\s+password\s+([^\s"'\x60<>{}]{6,200})`),
			Entropy:     2.5,
			Keywords:    []string{"machine"},
			Allowlists:  []*config.Allowlist{placeholders},
		},
	}
}
