import NBDProtocol

/// Where a server is and which of its exports is meant: an NBD URI (the NBD project's document on URIs), read strictly.
public struct NBDAddress: Equatable, Sendable {
    public enum Place: Equatable, Sendable {
        /// A name or address to be resolved, and a port.
        case network(host: String, port: UInt16)
        /// The path of a Unix socket, as bytes without a NUL.
        case local(path: [UInt8])
    }

    public var place: Place
    /// Bytes as they go over the wire; empty: the server's default export.
    public var export: [UInt8]
    /// nil: without TLS.
    public var tls: TLSWish?

    /// What the URI says of TLS. Names of files are paths of the user's.
    public struct TLSWish: Equatable, Sendable {
        /// A folder with ca-cert.pem, and client-cert.pem and client-key.pem where the server asks who the client is.
        public var certificates: [UInt8]?
        /// A file with lines USERNAME:KEY.
        public var keyFile: [UInt8]?
        /// Which line of that file; nil: the user's own name.
        public var username: String?
        /// What the server's certificate must be for; nil: the host of the URI.
        public var hostname: String?
        /// False: take any server for the right one.
        public var verifiesPeer = true

        public init() {}
    }

    /// The URI without what is nobody else's business, the names of files with certificates and keys: the label of a device,
    /// by which it is dialled again.
    public var label: String {
        var text = tls == nil ? "nbd" : "nbds"
        let user = tls?.username.map { PercentEncoding.encode(Array($0.utf8)) + "@" } ?? ""
        let path = export.isEmpty ? "" : "/" + PercentEncoding.encode(export, keeping: "/")
        switch place {
        case .network(let host, let port):
            let name = PercentEncoding.encode(Array(host.utf8), keeping: host.contains(":") ? ":" : "")
            text += "://" + user + (host.contains(":") ? "[\(name)]" : name)
            text += port == NBDOption.port ? "" : ":\(port)"
            return text + path
        case .local(let socket):
            return text + "+unix://" + user + (path.isEmpty ? "/" : path) + "?socket="
                + PercentEncoding.encode(socket, keeping: "/")
        }
    }

    /// The place, for messages.
    public var placeText: String {
        switch place {
        case .network(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        case .local(let path): PercentEncoding.readable(path)
        }
    }

    /// The export, for messages.
    public var exportText: String {
        export.isEmpty ? "its default export" : "export '\(PercentEncoding.readable(export))'"
    }
}

/// Why a text is no URI that ubd can dial: what is wrong, and what would be right.
public struct AddressError: Error, Equatable, Sendable {
    public let message: String
    public let remedy: String
}
