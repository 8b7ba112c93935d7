import Testing

@testable import NBDClient

@Suite("NBD URIs")
struct AddressTests {
    @Test(
        "name host, port, export, socket and TLS",
        arguments: [
            ("nbd://example.com", NBDAddress(place: .network(host: "example.com", port: 10809), export: [])),
            ("nbd://example.com/", NBDAddress(place: .network(host: "example.com", port: 10809), export: [])),
            ("NBD://h:1/a", NBDAddress(place: .network(host: "h", port: 1), export: Array("a".utf8))),
            ("nbd://h:/a/b", NBDAddress(place: .network(host: "h", port: 10809), export: Array("a/b".utf8))),
            // The first slash is none of the name's.
            ("nbd://h//a", NBDAddress(place: .network(host: "h", port: 10809), export: Array("/a".utf8))),
            (
                "nbd://[2001:db8::1]:99/%41%ff",
                NBDAddress(place: .network(host: "2001:db8::1", port: 99), export: [0x41, 0xFF])
            ),
            ("nbd://[fe80::1%25eth0]/", NBDAddress(place: .network(host: "fe80::1%eth0", port: 10809), export: [])),
            (
                "nbd+unix:///foo?socket=/tmp/a%20b",
                NBDAddress(place: .local(path: Array("/tmp/a b".utf8)), export: Array("foo".utf8))
            ),
            ("nbd+unix://?socket=s", NBDAddress(place: .local(path: Array("s".utf8)), export: [])),
        ])
    func reads(text: String, address: NBDAddress) throws {
        #expect(try NBDAddress(text) == address)
        // The label is a URI of the same place.
        #expect(try NBDAddress(address.label) == address)
    }

    @Test("say how TLS is to be done, and the label on record keeps the names of files with keys to itself")
    func readsTLS() throws {
        let address = try NBDAddress(
            "nbds://alice@h/x?tls-psk-file=/home/alice/keys&tls-hostname=other&tls-verify-peer=false")
        let tls = try #require(address.tls)
        #expect(tls.username == "alice")
        #expect(tls.keyFile == Array("/home/alice/keys".utf8))
        #expect(tls.hostname == "other")
        #expect(!tls.verifiesPeer)
        #expect(address.label == "nbds://alice@h/x")
        #expect(try NBDAddress("nbds://h/?tls-certificates=/etc/pki").tls?.certificates == Array("/etc/pki".utf8))
        #expect(try NBDAddress("nbds://h/?tls-username=bob").tls?.username == "bob")
    }

    @Test(
        "that can not be dialled are refused with what is wrong",
        arguments: [
            ("", "does not begin as a URI does"), ("h", "does not begin"), ("nbd:h", "does not begin"),
            ("nbd:/h", "does not begin"), ("http://h/", "scheme 'http'"), ("nbd+vsock://1/", "scheme 'nbd+vsock'"),
            ("nbd://", "names no host"), ("nbd:///x", "names no host"), ("nbd://h:0", "port '0'"),
            ("nbd://h:65536", "has the port '65536', which is none"),
            ("nbd://h:a", "port 'a'"), ("nbd://::1/", "names no host"),
            ("nbd://[::1/", "without ']'"), ("nbd://[::1]x/", "behind ']'"), ("nbd://[h]/", "no IPv6 address"),
            ("nbd://[2001:db8::1%2e0]/", "no IPv6 address"), ("nbd://[fe80::1%25]/", "no IPv6 address"),
            ("nbd://a%3Ab/", "no name"), ("nbd://a%0Ab/", "no name"), ("nbd://a%25b/", "no name"),
            ("nbd://h/%4", "escape in its path"), ("nbd://h/%zz", "escape in its path"),
            ("nbd://h/%00", "escape in its path"), ("nbd://h/a b", "a character"), ("nbd://h/ä", "a character"),
            ("nbd://h/#a", "fragment"), ("nbd://h/?socket=a", "a socket and a host"), ("nbd://h/?x=1", "parameter 'x'"),
            ("nbd://u@h/", "names a user"), ("nbds://u:secret@h/", "has a password"),
            ("nbd://u:secret@h/", "has a password"), ("http://u:secret@h/", "'http://u:...@h/' has the scheme"),
            ("nbd://u:secret#1@h/", "'nbd://u:...@h/' has a fragment"),
            ("nbd+unix://u:secret@/?socket=a", "has a password"),
            ("nbd://h/?tls-hostname=a", "means nothing without TLS"), ("nbds://h/?tls-hostname=", "no value"),
            ("nbds://h/?tls-hostname", "no value"), ("nbds://h/?tls-hostname=a&tls-hostname=b", "twice"),
            ("nbds://h/?tls-verify-peer=no", "neither true nor false"), ("nbds://u@h/?tls-username=v", "two users"),
            ("nbds://h/?tls-certificates=a&tls-psk-file=b", "certificates and a file of keys"),
            ("nbd+unix:///", "names no socket"), ("nbd+unix://h/?socket=a", "names the host 'h'"),
            ("nbd+unix:///?socket=" + String(repeating: "a", count: 108), "more than 107 bytes"),
            ("nbd://h/" + String(repeating: "a", count: 4097), "more than 4096 bytes"),
        ])
    func refuses(text: String, what: String) throws {
        let error = #expect(throws: AddressError.self) { try NBDAddress(text) }
        #expect(error?.message.contains(what) == true, "\(error?.message ?? "")")
        #expect(error?.message.contains("secret") == false)
        #expect(error?.remedy.isEmpty == false)
        // No TLS can be had there.
        #expect(error?.remedy.contains("nbds+unix") == false)
    }
}
