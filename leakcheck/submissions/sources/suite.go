// The behaviours in Go: suite BEHAVIOUR [NUMBER]. Each one ends by itself, whatever limit fails.
package main

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

var held [][]byte

func burn(t time.Duration) {
	for until := time.Now().Add(t); time.Now().Before(until); {
	}
}

func touch(size int) {
	for done := 0; done < size; done += 1 << 20 {
		piece := make([]byte, 1<<20)
		for at := 0; at < len(piece); at += 4096 {
			piece[at] = 1
		}
		held = append(held, piece)
	}
}

func writeOut(size int) {
	block := make([]byte, 65536)
	for i := range block {
		block[i] = 'x'
	}
	for size > 0 {
		n, err := os.Stdout.Write(block[:min(size, len(block))])
		if err != nil {
			os.Exit(5)
		}
		size -= n
	}
}

func litter() {
	for i := 0; i < 20; i++ {
		name := "/tmp/leakcheck-litter-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(i)
		if os.WriteFile(name, []byte("litter"), 0o600) != nil {
			return
		}
	}
}

func fdHog(most int) {
	for i := 0; i < most; i++ {
		if _, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0); err != nil {
			return
		}
	}
}

func main() {
	number := 0
	if len(os.Args) > 2 {
		number, _ = strconv.Atoi(os.Args[2])
	}
	switch os.Args[1] {
	case "hello":
		os.Stdout.WriteString("hello\n")
	case "cpu":
		burn(time.Duration(number) * time.Millisecond)
	case "memory", "allocate":
		touch(number)
	case "output", "flood":
		writeOut(number)
	case "spin":
		burn(time.Duration(number) * time.Second)
	case "sleep":
		time.Sleep(time.Duration(number) * time.Second)
	case "ignore_sigterm":
		signal.Ignore(syscall.SIGTERM)
		os.Stdout.WriteString("ready\n")
		time.Sleep(time.Duration(number) * time.Second)
	case "exit":
		os.Exit(number)
	case "exception":
		panic("nobody catches it")
	case "temp_litter":
		litter()
	case "fd_hog":
		fdHog(number)
	default:
		os.Stderr.WriteString("no behaviour " + os.Args[1] + "\n")
		os.Exit(64)
	}
}
