import Glibc
import NBDProtocol

extension NBDAddress {
    /// Reads a URI. The text may have any bytes above 0x7F in escapes only, as RFC 3986 wants it.
    public init(_ text: String) throws(AddressError) {
        var parser = try AddressParser(text)
        self = try parser.parse()
    }
}

/// Takes a URI apart from its beginning: scheme, authority, path, query.
private struct AddressParser {
    private let text: String
    private var rest: Substring.UTF8View

    init(_ text: String) throws(AddressError) {
        self.text = text
        rest = text[...].utf8
        guard rest.allSatisfy({ (0x21...0x7E).contains($0) }) else {
            throw wrong(
                "has a character that a URI can not have", remedy: "write it as an escape, as in %20 for a space")
        }
        guard !text.contains("#") else {
            throw wrong("has a fragment ('#'), which means nothing here", remedy: "write '#' in a name as %23")
        }
    }

    private func wrong(_ what: String, remedy: String) -> AddressError {
        AddressError(message: "--uri '\(shown)' \(what)", remedy: remedy)
    }

    /// The text for messages, without a password: others may see what went wrong.
    private var shown: String {
        let all = Array(text.utf8)
        let front = all.prefix { $0 != UInt8(ascii: "?") }
        guard let at = front.lastIndex(of: UInt8(ascii: "@")),
            let slash = front.indices.first(where: { front[$0...].starts(with: "//".utf8) }), slash < at,
            let colon = front[slash..<at].firstIndex(of: UInt8(ascii: ":"))
        else { return PercentEncoding.readable(all.prefix(200)) }
        return PercentEncoding.readable((all[...colon] + "...".utf8 + all[at...]).prefix(200))
    }

    mutating func parse() throws(AddressError) -> NBDAddress {
        let (isLocal, hasTLS) = try scheme()
        let authority = take(until: "/?")
        let path = take(until: "?")
        var tls = hasTLS ? NBDAddress.TLSWish() : nil
        var host = authority
        if let at = authority.lastIndex(of: UInt8(ascii: "@")) {
            host = authority[authority.index(after: at)...]
            let name = try userName(authority[..<at], hasTLS: hasTLS)
            tls?.username = name
        }
        // One slash separates the name from what stands before it; a second one belongs to the name.
        guard let export = PercentEncoding.decode(path.dropFirst()) else { throw badEscape("its path") }
        guard export.count <= NBDOption.longestString else {
            throw wrong("names an export of more than \(NBDOption.longestString) bytes", remedy: "give a shorter name")
        }
        let socket = try query(&tls)
        let place = try isLocal ? local(host, socket) : network(host, socket)
        return NBDAddress(place: place, export: export, tls: tls)
    }

    private mutating func scheme() throws(AddressError) -> (isLocal: Bool, hasTLS: Bool) {
        let known = [
            "nbd": (false, false), "nbds": (false, true), "nbd+unix": (true, false), "nbds+unix": (true, true),
        ]
        let name = String(decoding: take(until: ":/?"), as: UTF8.self)
        guard rest.starts(with: "://".utf8) else {
            throw wrong(
                "does not begin as a URI does",
                remedy: "give one such as nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")
        }
        rest = rest.dropFirst(3)
        // Schemes are the same in capitals and small letters (RFC 3986, 3.1).
        guard let found = known[name.lowercased()] else {
            throw wrong(
                "has the scheme '\(name)', which ubd does not know", remedy: "use nbd, nbds or nbd+unix")
        }
        return found
    }

    /// Takes what stands before one of these characters, or all that is left.
    private mutating func take(until stops: String) -> Substring.UTF8View {
        let part = rest.prefix { !stops.utf8.contains($0) }
        rest = rest.dropFirst(part.count)
        return part
    }

    private func badEscape(_ place: String) -> AddressError {
        wrong(
            "has an escape in \(place) that is none",
            remedy: "write two hexadecimal digits after each '%' (and never %00)")
    }

    private func userName(_ text: Substring.UTF8View, hasTLS: Bool) throws(AddressError) -> String? {
        // The label is shown to others who may see the device. No password of NBD exists.
        guard !text.contains(UInt8(ascii: ":")) else {
            throw AddressError(
                message: "--uri has a password, which NBD does not know",
                remedy: "name a file with the key, as in --tls-psk-file FILE")
        }
        guard hasTLS else {
            throw wrong("names a user, but without TLS nobody asks for one", remedy: "use nbds, or leave the user out")
        }
        guard let bytes = PercentEncoding.decode(text), !bytes.isEmpty,
            let name = String(validating: bytes, as: UTF8.self)
        else { throw badEscape("its user") }
        return name
    }

    // MARK: The query

    private static let parameters = [
        "socket", "tls-certificates", "tls-psk-file", "tls-username", "tls-hostname", "tls-verify-peer",
    ]

    /// Returns the socket.
    private mutating func query(_ tls: inout NBDAddress.TLSWish?) throws(AddressError) -> [UInt8]? {
        var socket: [UInt8]?
        var seen: [String] = []
        let query = rest.dropFirst()
        for part in query.split(whereSeparator: { $0 == UInt8(ascii: "&") || $0 == UInt8(ascii: ";") }) {
            let halves = part.split(separator: UInt8(ascii: "="), maxSplits: 1, omittingEmptySubsequences: false)
            let name = String(decoding: halves[0], as: UTF8.self)
            guard Self.parameters.contains(name) else {
                throw wrong(
                    "has the parameter '\(name)', which ubd does not know",
                    remedy: "there are: \(Self.parameters.joined(separator: ", "))")
            }
            guard !seen.contains(name) else { throw wrong("has '\(name)' twice", remedy: "give it once") }
            seen.append(name)
            guard halves.count == 2, let value = PercentEncoding.decode(halves[1]), !value.isEmpty else {
                throw wrong("has no value for '\(name)'", remedy: "write \(name)=VALUE, with escapes as in %20")
            }
            if name == "socket" {
                socket = value
            } else {
                guard tls != nil else {
                    throw wrong("has '\(name)', which means nothing without TLS", remedy: "use nbds, or leave it out")
                }
                try take(name, value, into: &tls!)
            }
        }
        if let tls, tls.certificates != nil, tls.keyFile != nil {
            throw wrong("names certificates and a file of keys", remedy: "give the one that the server wants")
        }
        return socket
    }

    private func take(
        _ name: String, _ value: [UInt8], into tls: inout NBDAddress.TLSWish
    ) throws(AddressError) {
        switch name {
        case "tls-certificates": tls.certificates = value
        case "tls-psk-file": tls.keyFile = value
        case "tls-verify-peer":
            switch value {
            case Array("true".utf8), Array("1".utf8): tls.verifiesPeer = true
            case Array("false".utf8), Array("0".utf8): tls.verifiesPeer = false
            default: throw wrong("has neither true nor false for 'tls-verify-peer'", remedy: "write one of them")
            }
        default:
            guard let text = String(validating: value, as: UTF8.self) else {
                throw wrong("has no text for '\(name)'", remedy: "give UTF-8")
            }
            if name == "tls-hostname" {
                tls.hostname = text
            } else if tls.username == nil || tls.username == text {
                tls.username = text
            } else {
                throw wrong("names two users", remedy: "give one")
            }
        }
    }

    // MARK: The place

    private func local(_ host: Substring.UTF8View, _ socket: [UInt8]?) throws(AddressError) -> NBDAddress.Place {
        guard host.isEmpty else {
            throw wrong(
                "names the host '\(String(decoding: host, as: UTF8.self))', but a Unix socket is on this one",
                remedy: "write three slashes, as in nbd+unix:///EXPORT?socket=PATH")
        }
        guard let socket else {
            throw wrong("names no socket", remedy: "add ?socket=PATH")
        }
        // sun_path has 108 bytes, the last of them for the NUL (unix(7)).
        guard socket.count < 108 else {
            throw wrong("names a socket by more than 107 bytes", remedy: "use a shorter path")
        }
        return .local(path: socket)
    }

    private func network(_ authority: Substring.UTF8View, _ socket: [UInt8]?) throws(AddressError) -> NBDAddress.Place {
        guard socket == nil else {
            throw wrong("names a socket and a host", remedy: "use nbd+unix for a socket")
        }
        var host = authority
        var port: Substring.UTF8View?
        let isInBrackets = host.first == UInt8(ascii: "[")
        if isInBrackets {
            guard let end = host.firstIndex(of: UInt8(ascii: "]")) else {
                throw wrong("has '[' without ']'", remedy: "write an IPv6 address as in nbd://[2001:db8::1]/")
            }
            let behind = host[host.index(after: end)...]
            guard behind.isEmpty || behind.first == UInt8(ascii: ":") else {
                throw wrong("has something other than a port behind ']'", remedy: "write nbd://[ADDRESS]:PORT/")
            }
            port = behind.isEmpty ? nil : behind.dropFirst()
            host = host[host.index(after: host.startIndex)..<end]
        } else if let colon = host.firstIndex(of: UInt8(ascii: ":")) {
            port = host[host.index(after: colon)...]
            host = host[..<colon]
        }
        guard let bytes = PercentEncoding.decode(host), let name = String(validating: bytes, as: UTF8.self) else {
            throw badEscape("its host")
        }
        guard !name.isEmpty else {
            throw wrong("names no host", remedy: "write it as in nbd://HOST/EXPORT; this host is 'localhost'")
        }
        guard !isInBrackets || Self.isIPv6(name) else {
            throw wrong("has no IPv6 address between '[' and ']'", remedy: "write other names without them")
        }
        guard isInBrackets || Self.isName(name) else {
            throw wrong(
                "has a host that is no name", remedy: "give letters, digits, '-', '.' and '_', or [ADDRESS] for IPv6")
        }
        return .network(host: name, port: try number(port))
    }

    /// "" is the usual port, as in "nbd://host:/" (RFC 3986, 3.2.3).
    private func number(_ text: Substring.UTF8View?) throws(AddressError) -> UInt16 {
        guard let text, !text.isEmpty else { return NBDOption.port }
        guard text.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
            let port = UInt16(String(decoding: text, as: UTF8.self)), port > 0
        else {
            throw wrong(
                "has the port '\(String(decoding: text, as: UTF8.self))', which is none",
                remedy: "give a number from 1 to 65535; an IPv6 address stands in brackets")
        }
        return port
    }

    /// With or without a zone, as in fe80::1%eth0 (in a URI the "%" is an escape, RFC 6874).
    private static func isIPv6(_ text: String) -> Bool {
        let halves = text.split(separator: "%", maxSplits: 1, omittingEmptySubsequences: false)
        var binary = in6_addr()
        return inet_pton(AF_INET6, String(halves[0]), &binary) == 1
            && (halves.count == 1 || (!halves[1].isEmpty && isName(halves[1])))
    }

    /// No character that means something in a URI, or steers a terminal. Letters of all languages are left to the resolver.
    private static func isName(_ text: some StringProtocol) -> Bool {
        text.unicodeScalars.allSatisfy { $0.isASCII ? PercentEncoding.isUnreserved(UInt8($0.value)) : !$0.isControl }
    }
}
