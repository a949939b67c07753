package storebench

import "github.com/holdfast-backup/holdfast/internal/lab/debian"

// The two servers whose disks are stored. They are installed independently of each other and share most of their
// packages, as the machines of one owner do: the same files, laid out anew.
var servers = []debian.Server{
	{Name: "web", Packages: []string{"linux-image-amd64", "openssh-server", "nginx", "postgresql", "python3", "vim", "mariadb-server"}},
	{Name: "build", Packages: []string{"linux-image-amd64", "openssh-server", "nginx", "postgresql", "git", "build-essential"}},
}

// serverMiB is the size of a server's disk.
const serverMiB = 10 << 10
