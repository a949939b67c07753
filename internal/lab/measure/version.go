package measure

import (
	"strings"
	"unicode"
)

// Version returns the first word of a text that has a digit and a dot, or else the first that is a number.
func Version(text string) string {
	number := ""
	for _, word := range strings.Fields(text) {
		digits := strings.ContainsAny(word, "0123456789")
		if digits && strings.Contains(word, ".") {
			return strings.Trim(word, "Vv,")
		}
		if number == "" && strings.TrimFunc(word, unicode.IsDigit) == "" {
			number = word
		}
	}
	if number == "" {
		return "unknown"
	}
	return number
}
