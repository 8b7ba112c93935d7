extension TargetManifest {
    public static let nbd = TargetManifest(
        name: "nbd", number: 3, summary: "Serves what an NBD server exports",
        inputs: [
            TargetInput(
                .sockets, name: "uri", count: 1...16,
                help: "The export, as nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")
        ],
        options: [
            .size(otherwise: "the export's").agreed,
            .blockSize(otherwise: "512, or the least that the server takes").agreed,
            TargetOption(
                TargetOption.NBD.connections, name: "connections", kind: .count(1...16),
                otherwise: "as many as queues; 1 when the server can do no more",
                help: "Connections to the server, each with a queue of its own"),
            TargetOption(
                TargetOption.NBD.reconnect, name: "reconnect", kind: .duration(0...86_400_000),
                initial: .number(300_000), help: "How long requests wait for a server that is gone"),
            TargetOption(
                TargetOption.NBD.onLost, name: "on-lost", kind: .choice(["fail", "wait"]), initial: .number(0),
                help: "What becomes of them after that"),
            TargetOption(
                TargetOption.NBD.writeThrough, name: "write-through", kind: .flag,
                help: "A write is on the server's stable storage when it is done"),
            TargetOption(
                TargetOption.NBD.exportFlags, name: "export-flags", kind: .count(0...0xffff),
                help: "The server's transmission flags"
            ).agreed,
            TargetOption(
                TargetOption.NBD.minimumBlock, name: "minimum-block",
                kind: .bytes(1...4096, multipleOf: 1, powerOfTwo: true), initial: .number(1),
                help: "The least that the server takes, and what all requests are multiples of"
            ).agreed,
            TargetOption(
                TargetOption.NBD.preferredBlock, name: "preferred-block",
                kind: .bytes(512...1 << 31, multipleOf: 512, powerOfTwo: true), initial: .number(4096),
                help: "What the server likes best to get at once"
            ).agreed,
            TargetOption(
                TargetOption.NBD.maximumBlock, name: "maximum-block",
                kind: .bytes(512...0xffff_ffff, multipleOf: 1, powerOfTwo: false), initial: .number(32 << 20),
                help: "The most data that the server takes or gives at once"
            ).agreed,
            TargetOption(
                TargetOption.NBD.cipher, name: "cipher", kind: .text(0...64), initial: .text(""),
                help: "What the connections are encrypted with; empty: nothing"
            ).agreed,
        ],
        modes: [.copy], queues: .onePerConnection, submissions: .nbd, spareBuffers: nbdSpareBuffers,
        // Sockets know nothing of a request's own pages.
        workerData: WorkerData(reads: true, writes: true), survival: .freshInputs)
}

extension TargetManifest {
    /// As many replies with data as one read takes.
    @inlinable @inline(__always)
    public static var nbdSpareBuffers: UInt32 { 8 }
}

extension Submissions {
    /// Of the queue: a read of the event by which the sockets' ring wakes the other one. On the socket: one write and one read.
    @inlinable @inline(__always)
    public static var nbd: Submissions { Submissions(perRequest: 1, ofQueue: 1, onSocket: 2) }
}

extension TargetOption {
    /// Numbers of target nbd's own options.
    public enum NBD {
        public static let exportFlags: Number = 16
        public static let minimumBlock: Number = 17
        public static let preferredBlock: Number = 18
        public static let maximumBlock: Number = 19
        public static let cipher: Number = 20
        public static let reconnect: Number = 21
        public static let onLost: Number = 22
        public static let writeThrough: Number = 23
        public static let connections: Number = 24
    }
}

// The options of an nbd device.
extension DeviceOptions {
    /// What becomes of requests whose server does not come back.
    public enum OnLost: UInt64, Sendable {
        case fail = 0
        case wait = 1
    }

    /// The server's transmission flags, as it sent them.
    public var exportFlags: UInt16 { UInt16(clamping: self[TargetOption.NBD.exportFlags]?.number ?? 0) }
    /// Bytes: every request is a multiple of it.
    public var minimumBlock: UInt32 { UInt32(clamping: self[TargetOption.NBD.minimumBlock]?.number ?? 1) }
    /// Bytes.
    public var preferredBlock: UInt32 { UInt32(clamping: self[TargetOption.NBD.preferredBlock]?.number ?? 4096) }
    /// Bytes: no read, write or write of zeros is longer.
    public var maximumBlock: UInt32 { UInt32(clamping: self[TargetOption.NBD.maximumBlock]?.number ?? 32 << 20) }
    /// Of the connections, for people; empty when they are not encrypted.
    public var cipher: String {
        if case .text(let text)? = self[TargetOption.NBD.cipher] { text } else { "" }
    }
    /// Milliseconds that requests wait for a server that is gone.
    public var reconnect: UInt64 { self[TargetOption.NBD.reconnect]?.number ?? 300_000 }
    public var onLost: OnLost { self[TargetOption.NBD.onLost]?.number.flatMap(OnLost.init) ?? .fail }
    public var writeThrough: Bool { self[TargetOption.NBD.writeThrough] != nil }
    /// nil: as many as queues.
    public var connections: Int? { self[TargetOption.NBD.connections]?.number.map { Int(clamping: $0) } }
}
