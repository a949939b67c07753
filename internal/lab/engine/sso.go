package engine

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// session is a token's life. An idle one ends after half an hour, whatever its exp says.
type session struct {
	user *User
	used time.Time
}

const (
	tokenLife = 7 * 24 * time.Hour // what exp promises
	idleLife  = 30 * time.Minute
	// loginDelay is what a failed login costs with the internal profile.
	loginDelay = 5 * time.Second
	apiScope   = "ovirt-app-api"
	allScopes  = "ovirt-app-api ovirt-ext=token-info:authz-search ovirt-ext=token-info:public-authz-search " +
		"ovirt-ext=token-info:validate ovirt-ext=token:password-access"
	badLogin     = "Unable to log in. Verify your login information or contact the system administrator.."
	noProfile    = "No valid profile found in credentials.."
	grantExpired = "invalid_grant: The provided authorization grant for the auth code has expired."
	badGrant     = "The authorization grant type is not supported by the authorization server."
)

// ssoError writes a login's failure: always 400.
func ssoError(w http.ResponseWriter, code, text string) {
	ssoJSON(w, http.StatusBadRequest, map[string]string{"error_code": code, "error": text})
}

func ssoJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(body) // a client that is gone needs no answer
}

// serveToken is the password grant.
func (e *Engine) serveToken(w http.ResponseWriter, r *http.Request) {
	form := r.URL.Query()
	if r.Method == http.MethodPost {
		if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
			ssoJSON(w, http.StatusBadRequest, map[string]string{"error": "unsupported_grant_type", "error_description": badGrant})
			return
		}
		if err := r.ParseForm(); err == nil {
			form = r.Form
		}
	}
	if !strings.Contains(r.Header.Get("Accept"), "application/json") {
		ssoError(w, "invalid_request", "Missing parameter: 'Accept Header'")
		return
	}
	if form.Get("grant_type") != "password" {
		ssoError(w, "unsupported_grant_type", badGrant)
		return
	}
	for _, need := range []string{"username", "password"} {
		if !form.Has(need) {
			ssoError(w, "invalid_request", "Missing parameter: '"+need+"'")
			return
		}
	}
	user, refusal := e.authenticate(r, form.Get("username"), form.Get("password"))
	if refusal != "" {
		ssoError(w, "access_denied", refusal)
		return
	}
	e.grant(w, user, form)
}

func (e *Engine) grant(w http.ResponseWriter, user *User, form url.Values) {
	token := newToken()
	e.locked(func() { e.state.sessions[token] = &session{user: user, used: now()} })
	scope := form.Get("scope")
	if scope == apiScope {
		scope = allScopes
	}
	ssoJSON(w, http.StatusOK, struct {
		Token string `json:"access_token"`
		Scope string `json:"scope"`
		Exp   string `json:"exp"`
		Type  string `json:"token_type"`
	}{token, scope, number(now().Add(tokenLife).Truncate(time.Second).UnixMilli()), "bearer"})
}

// authenticate checks a password; on failure it returns the text and has taken its time, unless the profile is unknown.
func (e *Engine) authenticate(r *http.Request, name, password string) (*User, string) {
	profile := ""
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		profile = name[i+1:]
	}
	known := slices.ContainsFunc(e.opts.Users, func(u User) bool { return strings.HasSuffix(u.Name, "@"+profile) })
	switch {
	case profile == "":
		return nil, "Cannot authenticate user '" + strings.TrimSuffix(name, "@") + "@N/A': " + noProfile
	case !known:
		return nil, "Cannot authenticate user '" + name + "': " + noProfile
	}
	for i := range e.opts.Users {
		if u := &e.opts.Users[i]; u.Name == name && u.Password == password && password != "" {
			return u, ""
		}
	}
	e.wait(r.Context(), loginDelay)
	return nil, "Cannot authenticate user '" + name + "': " + badLogin
}

func newToken() string {
	var b [64]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// serveLogout revokes a token; it never minds.
func (e *Engine) serveLogout(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err == nil {
		e.locked(func() { delete(e.state.sessions, r.Form.Get("token")) })
	}
	ssoJSON(w, http.StatusOK, struct{}{})
}

func (e *Engine) servePKI(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Query().Get("resource")
	if resource != "ca-certificate" {
		writePage(w, page(http.StatusBadRequest, "Resource '"+resource+"' is invalid"))
		return
	}
	w.Header().Set("Content-Type", "application/x-x509-ca-cert; charset=ISO-8859-1")
	_, _ = w.Write(e.ca.PEM())
}

// login finds out who asks; the answer to a stranger is a page, never a fault.
func (e *Engine) login(r *http.Request) (*User, *apiFault) {
	kind, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	var user *User
	switch {
	case strings.EqualFold(kind, "Bearer"):
		e.mu.Lock()
		s := e.state.sessions[secret]
		if s != nil && now().Sub(s.used) < idleLife {
			s.used, user = now(), s.user
		}
		e.mu.Unlock()
		if user == nil {
			return nil, page(http.StatusUnauthorized, grantExpired)
		}
	case strings.EqualFold(kind, "Basic"):
		name, password, _ := r.BasicAuth()
		u, refusal := e.authenticate(r, name, password)
		if refusal != "" {
			return nil, page(http.StatusUnauthorized, "access_denied: "+refusal)
		}
		user = u
	default:
		return nil, page(http.StatusUnauthorized, "Unauthorized")
	}
	if user.Powerless {
		login, profile := user.Name, ""
		if i := strings.LastIndexByte(login, '@'); i >= 0 {
			profile = login[i+1:]
		}
		return nil, page(http.StatusUnauthorized, "The user "+login+"-authz with profile ["+profile+"] is not authorized to perform login")
	}
	return user, nil
}
