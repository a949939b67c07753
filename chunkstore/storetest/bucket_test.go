package storetest

import (
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
)

func TestBucket(t *testing.T) {
	TestBackend(t, func(*testing.T) backend.Backend { return NewBucket() })
}
