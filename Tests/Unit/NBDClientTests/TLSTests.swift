import Dialing
import Foundation
import Glibc
import Testing

@testable import NBDClient

@Suite("TLS with real servers")
struct TLSTests {
    /// An authority, a server for "localhost" and a client, in PEM files as the servers want them.
    private static func makeCertificates(_ folder: String, purpose: String = "tls_www_server\n") throws {
        func template(_ name: String, _ text: String) throws {
            try text.write(toFile: "\(folder)/\(name)", atomically: true, encoding: .utf8)
        }
        try template("ca", "cn = authority\nca\ncert_signing_key\ncrl_signing_key\n")
        try template(
            "server",
            "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\n\(purpose)encryption_key\nsigning_key\n"
        )
        // For the server's host, and yet no server's.
        try template("imposter", "cn = localhost\ndns_name = localhost\ntls_www_client\nencryption_key\nsigning_key\n")
        try template("client", "cn = alice\ntls_www_client\nencryption_key\nsigning_key\n")
        for name in ["ca", "server", "client", "imposter"] {
            try perform(
                "certtool", ["--generate-privkey", "--key-type=ecdsa", "--outfile", "\(folder)/\(name)-key.pem"])
            let sign =
                name == "ca"
                ? ["--generate-self-signed"]
                : [
                    "--generate-certificate", "--load-ca-certificate", "\(folder)/ca-cert.pem", "--load-ca-privkey",
                    "\(folder)/ca-key.pem",
                ]
            try perform(
                "certtool",
                sign + [
                    "--load-privkey", "\(folder)/\(name)-key.pem", "--template", "\(folder)/\(name)", "--outfile",
                    "\(folder)/\(name)-cert.pem",
                ])
        }
    }

    private static let nbdkit = ["-f", "-p", "%P", "-i", "127.0.0.1", "--tls=require", "--tls-certificates=%D"]

    @Test("takes the server whose certificate an authority of the folder has signed, and shows the client's")
    func certificates() throws {
        let server = try RealServer("nbdkit", Self.nbdkit + ["--tls-verify-peer", "memory", "10M"]) { folder, _ in
            try Self.makeCertificates(folder.path)
        }
        let address = try server.address("nbds://localhost:%P/?tls-certificates=%D")
        #expect(try Dialer(address: address).ask().size == 10 << 20)
        // By its number, as the certificate has it.
        #expect(try Dialer(address: server.address("nbds://127.0.0.1:%P/?tls-certificates=%D")).ask().size == 10 << 20)
        // Whoever the server does not know is sent away, in the alert's words.
        var stranger = address
        try FileManager.default.createDirectory(atPath: server.folder.path + "/x", withIntermediateDirectories: true)
        try FileManager.default.copyItem(
            atPath: server.folder.path + "/ca-cert.pem", toPath: server.folder.path + "/x/ca-cert.pem")
        stranger.tls?.certificates = Array((server.folder.path + "/x").utf8)
        let refused = #expect(throws: DialFailure.self) { try Dialer(address: stranger).ask() }
        #expect(
            refused?.message.contains("the server at localhost:\(server.port)") == true, "\(refused?.message ?? "")")
    }

    @Test("refuses a certificate that is for another host or that nobody trusted has signed, in the library's words")
    func badCertificates() throws {
        let server = try RealServer("nbdkit", Self.nbdkit + ["memory", "10M"]) { folder, _ in
            try Self.makeCertificates(folder.path)
        }
        let other = #expect(throws: DialFailure.self) {
            try Dialer(address: server.address("nbds://localhost:%P/?tls-certificates=%D&tls-hostname=example.com"))
                .ask()
        }
        #expect(other?.kind == .refused)
        #expect(
            other?.message.contains(
                "has a certificate that is not accepted: The certificate is NOT trusted. The name in the certificate does not match"
            ) == true, "\(other?.message ?? "")")
        let unknown = #expect(throws: DialFailure.self) {
            try Dialer(address: server.address("nbds://localhost:%P/")).ask()
        }
        #expect(unknown?.message.contains("The certificate issuer is unknown") == true, "\(unknown?.message ?? "")")
        #expect(
            try Dialer(address: server.address("nbds://localhost:%P/?tls-verify-peer=false")).ask().size == 10 << 20)
    }

    @Test("refuses a client's certificate, even one with the host's name, and takes one that names no purpose")
    func purpose() throws {
        let server = try RealServer("nbdkit", Self.nbdkit + ["memory", "10M"]) { folder, _ in
            try Self.makeCertificates(folder.path)
            for kind in ["cert", "key"] {
                try FileManager.default.removeItem(atPath: "\(folder.path)/server-\(kind).pem")
                try FileManager.default.moveItem(
                    atPath: "\(folder.path)/imposter-\(kind).pem", toPath: "\(folder.path)/server-\(kind).pem")
            }
        }
        let address = try server.address("nbds://localhost:%P/?tls-certificates=%D")
        let refused = #expect(throws: DialFailure.self) { try Dialer(address: address).ask() }
        #expect(
            refused?.kind == .refused && refused?.message.contains("purpose") == true, "\(refused?.message ?? "")")
        let any = try RealServer("nbdkit", Self.nbdkit + ["memory", "10M"]) { folder, _ in
            try Self.makeCertificates(folder.path, purpose: "")
        }
        #expect(
            try Dialer(address: any.address("nbds://localhost:%P/?tls-certificates=%D")).ask().size == 10 << 20)
    }

    @Test("refuses a certificate that the authority has revoked, and goes no further when the list of those is bad")
    func revoked() throws {
        let server = try RealServer("nbdkit", Self.nbdkit + ["memory", "10M"]) { folder, _ in
            try Self.makeCertificates(folder.path)
        }
        let folder = server.folder.path
        try FileManager.default.createDirectory(atPath: folder + "/x", withIntermediateDirectories: true)
        try FileManager.default.copyItem(atPath: folder + "/ca-cert.pem", toPath: folder + "/x/ca-cert.pem")
        try "crl_next_update = 30\ncrl_number = 1\n".write(toFile: folder + "/crl", atomically: true, encoding: .utf8)
        let address = try server.address("nbds://localhost:%P/?tls-certificates=%D/x")
        let list = folder + "/x/ca-crl.pem"
        func revoke(_ name: String) throws {
            try perform(
                "certtool",
                [
                    "--generate-crl", "--load-ca-privkey", "\(folder)/ca-key.pem", "--load-ca-certificate",
                    "\(folder)/ca-cert.pem", "--load-certificate", "\(folder)/\(name)-cert.pem", "--template",
                    "\(folder)/crl", "--outfile", list,
                ])
        }
        try revoke("client")
        #expect(try Dialer(address: address).ask().size == 10 << 20)
        try revoke("server")
        let refused = #expect(throws: DialFailure.self) { try Dialer(address: address).ask() }
        #expect(refused?.kind == .refused && refused?.message.contains("revoked") == true, "\(refused?.message ?? "")")
        for (text, words) in [("no list", "can not be read"), ("", "ca-crl.pem")] {
            try text.write(toFile: list, atomically: true, encoding: .utf8)
            let unreadable = #expect(throws: DialFailure.self) { try Dialer(address: address).ask() }
            #expect(
                unreadable?.kind == .usage && unreadable?.message.contains(words) == true,
                "\(unreadable?.message ?? "")")
        }
        unlink(list)
        symlink(folder + "/nowhere", list)
        #expect(throws: DialFailure.self) { try Dialer(address: address).ask() }
    }

    @Test("shares a key of a file with the server")
    func sharedKey() throws {
        let server = try RealServer(
            "nbdkit", ["-f", "-p", "%P", "-i", "127.0.0.1", "--tls=require", "--tls-psk=%D/keys", "memory", "10M"]
        ) { folder, _ in
            try "alice:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n".write(
                toFile: folder.path + "/keys", atomically: true, encoding: .utf8)
        }
        let address = try server.address("nbds://alice@127.0.0.1:%P/?tls-psk-file=%D/keys")
        #expect(try Dialer(address: address).ask().size == 10 << 20)
        let nobody = #expect(throws: DialFailure.self) {
            try Dialer(address: server.address("nbds://bob@127.0.0.1:%P/?tls-psk-file=%D/keys")).ask()
        }
        #expect(
            nobody?.kind == .usage && nobody?.message.contains("has no key of 'bob'") == true,
            "\(nobody?.message ?? "")")
        let missing = #expect(throws: DialFailure.self) {
            try Dialer(address: server.address("nbds://bob@127.0.0.1:%P/?tls-psk-file=%D/none")).ask()
        }
        let why = "the file of keys can not be read (open \(server.folder.path)/none: No such file or directory)"
        // Of a file here the server is not to blame.
        #expect(missing?.message == why, "\(missing?.message ?? "")")
        try "alice:ffff2233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n".write(
            toFile: server.folder.path + "/wrong", atomically: true, encoding: .utf8)
        #expect(throws: DialFailure.self) {
            try Dialer(address: server.address("nbds://alice@127.0.0.1:%P/?tls-psk-file=%D/wrong")).ask()
        }
    }

    @Test("does not go on without TLS where it was wanted, nor with a server that demands it")
    func demands() throws {
        let plain = try RealServer("nbdkit", ["-f", "-p", "%P", "-i", "127.0.0.1", "memory", "10M"])
        let none = #expect(throws: DialFailure.self) {
            try Dialer(address: plain.address("nbds://127.0.0.1:%P/")).ask()
        }
        #expect(
            none?.message.hasSuffix("has no TLS") == true || none?.message.contains("use TLS") == true,
            "\(none?.message ?? "")")
        let strict = try RealServer("nbdkit", Self.nbdkit + ["memory", "10M"]) { folder, _ in
            try Self.makeCertificates(folder.path)
        }
        let wanted = #expect(throws: DialFailure.self) {
            try Dialer(address: strict.address("nbd://127.0.0.1:%P/")).ask()
        }
        #expect(wanted?.message.contains("wants TLS") == true, "\(wanted?.message ?? "")")
    }

    @Test("says what is missing where the kernel has no TLS, before anything is sent")
    func kernelTLS() throws {
        let server = try RealServer("nbdkit", ["-f", "-p", "%P", "-i", "127.0.0.1", "memory", "10M"])
        let dialer = Dialer(address: try server.address("nbds://127.0.0.1:%P/"))
        let error = #expect(throws: DialFailure.self) { _ = try dialer.dial().takeFile() }
        // With the module it is the server that refuses.
        let hasModule = FileManager.default.fileExists(atPath: "/proc/net/tls_stat")
        #expect(error?.kind == (hasModule ? .refused : .host))
        if !hasModule { #expect(error?.remedy.contains("modprobe tls") == true) }
        let local = #expect(throws: DialFailure.self) {
            _ = try Dialer(address: server.address("nbds+unix:///?socket=%S")).dial().takeFile()
        }
        #expect(local != nil)
    }

    @Test(
        "finds the key of a user in a file of keys",
        arguments: [("alice", "aa"), ("bob:x", "bb"), ("carol", nil), ("dave", nil), ("x", nil)])
    func keys(name: String, key: String?) {
        let text = "# alice:cc\nalice:aa\r\nbob:x:bb\ncarol:zz\ndave:a\nalice:dd\n"
        #expect(KeyFile.key(of: name, text: Array(text.utf8)) == key.map { Array($0.utf8) })
    }
}
