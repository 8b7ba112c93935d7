import ArgumentParser

/// The options of `DialOptions` on the command line.
struct DialArguments: ParsableArguments {
    @Option(
        name: .customLong("tls-certificates"),
        help: ArgumentHelp(
            "With nbds://: a folder with ca-cert.pem, and client-cert.pem and client-key.pem if the server asks for them. "
                + "(default: the authorities that this host trusts)", valueName: "folder"),
        completion: .directory)
    var certificates: String?

    @Option(
        name: .customLong("tls-psk-file"),
        help: ArgumentHelp("With nbds://: a file with keys shared with the server, lines USER:KEY.", valueName: "path"),
        completion: .file())
    var keyFile: String?

    @Option(
        name: .customLong("tls-username"),
        help: ArgumentHelp("Whose key of that file. (default: yours)", valueName: "name"))
    var username: String?

    @Option(
        name: .customLong("tls-hostname"),
        help: ArgumentHelp("What the server's certificate must be for. (default: the URI's host)", valueName: "name"))
    var hostname: String?

    var options: DialOptions {
        DialOptions(certificates: certificates, keyFile: keyFile, username: username, hostname: hostname)
    }
}

/// How a server is dialled: for `ubd-nbd`, and never for the broker.
struct DialOptions {
    var certificates: String?
    var keyFile: String?
    var username: String?
    var hostname: String?

    private var all: [(name: String, value: String?)] {
        [
            ("--tls-certificates", certificates), ("--tls-psk-file", keyFile), ("--tls-username", username),
            ("--tls-hostname", hostname),
        ]
    }

    /// The first that was given.
    var given: String? { all.first { $0.value != nil }?.name }

    /// What `ubd-nbd` is told of them. Each with a value, as it was typed.
    var words: [[CChar]] {
        all.flatMap { name, value in value.map { [Array(name.utf8CString), $0.systemPath] } ?? [] }
    }
}

extension DialOptions {
    init(_ line: inout PlainLine) {
        certificates = line.text("--tls-certificates")
        keyFile = line.text("--tls-psk-file")
        username = line.text("--tls-username")
        hostname = line.text("--tls-hostname")
    }
}
