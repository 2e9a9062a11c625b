// Draws a MiB of random bytes at once, and hashes, encrypts and signs what stdin has.
package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
)

func check(err error, what string) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(1)
	}
}

func main() {
	text, err := io.ReadAll(os.Stdin)
	check(err, "stdin:")
	fmt.Printf("sha256 %x\n", sha256.Sum256(text))

	random := make([]byte, 1<<20)
	_, err = rand.Read(random)
	check(err, "random:")
	var seen [256]bool
	different := 0
	for _, b := range random[len(random)-64<<10:] {
		if !seen[b] {
			seen[b] = true
			different++
		}
	}
	fmt.Println("random", len(random), different)

	public, private, err := ed25519.GenerateKey(rand.Reader)
	check(err, "key:")
	fmt.Println("signed", ed25519.Verify(public, text, ed25519.Sign(private, text)))

	block, err := aes.NewCipher(random[:32])
	check(err, "cipher:")
	sealing, err := cipher.NewGCM(block)
	check(err, "mode:")
	nonce := random[32 : 32+sealing.NonceSize()]
	opened, err := sealing.Open(nil, nonce, sealing.Seal(nil, nonce, text, nil), nil)
	check(err, "opening:")
	fmt.Println("sealed", bytes.Equal(opened, text))
}
