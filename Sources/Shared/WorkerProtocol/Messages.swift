import Targets

// The private protocol between broker and worker: messages of fixed layout over a SOCK_SEQPACKET pair. A worker's
// messages are hostile input to the broker: a message with an unexpected length, kind or time ends the worker.

/// The first message to a new worker, sent once, with the files of WorkerDescriptor.launchFiles.
public struct LaunchMessage: Equatable, Sendable {
    /// The message's layout; the number is the message's kind.
    ///
    /// A device keeps the layout of its first broker, since its worker's program has that version and may be started
    /// again (see `UpgradeOperation` in the broker). Every worker reads both.
    public enum Layout: UInt32, CaseIterable, Sendable {
        /// Version 1, before manifests: the options of null and loop at fixed positions.
        case fixed = 0x5542_4401
        /// Version 2: the options of any target, by number.
        case options = 0x5542_4403
    }

    public struct Flags: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        public static let readOnly = Flags(rawValue: 1 << 0)
        /// Use the page cache even if the file supports direct I/O. Only in `Layout.fixed`; otherwise an option.
        static let buffered = Flags(rawValue: 1 << 1)
        /// The access policy allows files on file systems that are not known to be local: FUSE, overlay, others.
        public static let allowOther = Flags(rawValue: 1 << 2)
        /// The access policy allows files on network file systems.
        public static let allowNetwork = Flags(rawValue: 1 << 3)
        /// The driver is older than Linux 6.4: use plain command numbers, not ioctl-encoded ones.
        public static let legacyOpcodes = Flags(rawValue: 1 << 4)
        /// The device was added with zero copy: the driver registers requests' pages in the ring's buffer table.
        public static let zeroCopy = Flags(rawValue: 1 << 5)
        /// The device was added with BATCH_IO: one command fetches or commits many requests.
        public static let batch = Flags(rawValue: 1 << 6)
        /// The kernel trusts the processors' counters (TSC), so the worker may measure times with them.
        public static let steadyTicks = Flags(rawValue: 1 << 7)
        /// The access policy lets the device's sockets lead to this host only: AF_UNIX, or a loopback address.
        public static let localSockets = Flags(rawValue: 1 << 8)
        /// The worker locks the bytes of its disk in the client's open file, and fails when somebody else has locked
        /// some: the device is to become larger.
        public static let claimsBytes = Flags(rawValue: 1 << 9)
        /// The worker unlocks the bytes behind its disk in the client's open file: the device has become smaller.
        public static let releasesBytes = Flags(rawValue: 1 << 10)
    }

    public var layout: Layout
    public var target: TargetManifest
    public var queues: UInt16
    /// Requests per queue.
    public var depth: UInt16
    /// Bytes.
    public var maxIOBytes: UInt32
    public var flags: Flags
    public var options: DeviceOptions

    /// The maximum size of a message in bytes. A test checks the manifests against it.
    public static let longest = 4096

    /// `options`: nil for the target's defaults.
    public init(
        target: TargetManifest, queues: UInt16, depth: UInt16, maxIOBytes: UInt32, flags: Flags = [],
        options: DeviceOptions? = nil, layout: Layout = .options
    ) {
        self.layout = layout
        self.target = target
        self.queues = queues
        self.depth = depth
        self.maxIOBytes = maxIOBytes
        self.flags = flags
        self.options = options ?? DeviceOptions(initialOf: target)
    }

    /// The number of input descriptors of the device.
    public var descriptors: ClosedRange<Int> { target.descriptors(options, queues: Int(queues)) }

    /// How many of them the worker still has when it serves.
    public var keptDescriptors: ClosedRange<Int> { target.keptDescriptors(options, queues: Int(queues)) }

    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.put(layout.rawValue)
        writer.put(target.number)
        writer.put(queues)
        writer.put(depth)
        writer.put(maxIOBytes)
        switch layout {
        case .fixed:
            writer.put(options.buffered ? flags.union(.buffered).rawValue : flags.rawValue)
            writer.put(options.blockSize ?? 0)
            writer.put(options.offset)
            writer.put(options.size ?? 0)
        case .options:
            writer.put(flags.rawValue)
            options.encode(to: &writer)
        }
        return writer.bytes
    }

    /// nil: not a message of this protocol, or it has a value that the target's manifest does not allow.
    public init?(decoding bytes: [UInt8]) {
        var reader = ByteReader(bytes)
        guard bytes.count <= LaunchMessage.longest, let layout = Layout(rawValue: reader.get()),
            let target = TargetList.target(number: reader.get())
        else { return nil }
        self.layout = layout
        self.target = target
        queues = reader.get()
        depth = reader.get()
        maxIOBytes = reader.get()
        flags = Flags(rawValue: reader.get())
        switch layout {
        case .fixed:
            options = DeviceOptions(fixed: &reader, buffered: flags.contains(.buffered))
            flags.remove(.buffered)
        case .options:
            guard !flags.contains(.buffered), let options = DeviceOptions(from: &reader, of: target) else { return nil }
            self.options = options
        }
        guard reader.isComplete, queues > 0, depth > 0, maxIOBytes > 0, target.accepts(options),
            target.accepts(queues: Int(queues))
        else { return nil }
    }
}

/// The request to serve, sent after SET_PARAMS: the worker makes its rings, seals them and fetches.
public struct ServeMessage: Equatable, Sendable {
    static let kind: UInt32 = 0x5542_4402
    /// A set of processors for each queue, one bit each in words of 64: the kernel sends requests to the queue from
    /// them (GET_QUEUE_AFFINITY), and the queue's thread runs there. All sets have the same number of words. A single
    /// set is for all queues; none means no affinity.
    public var affinity: [[UInt64]]

    /// The maximum size of a message in bytes. A host with too many queues and processors for it goes without affinity.
    public static let longest = 32768

    public init(affinity: [[UInt64]] = []) {
        let words = affinity.first?.count ?? 0
        let fits = 8 + affinity.count * words * 8 <= ServeMessage.longest
        self.affinity = fits && words > 0 && affinity.allSatisfy { $0.count == words } ? affinity : []
    }

    /// The processors for a queue's thread; empty: all.
    public func processors(ofQueue queue: Int) -> [UInt64] {
        affinity.count == 1 ? affinity[0] : queue < affinity.count ? affinity[queue] : []
    }

    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.put(ServeMessage.kind)
        writer.put(UInt16(affinity.count))
        writer.put(UInt16(affinity.first?.count ?? 0))
        for set in affinity { for word in set { writer.put(word) } }
        return writer.bytes
    }

    public init?(decoding bytes: [UInt8]) {
        var reader = ByteReader(bytes)
        guard reader.get(UInt32.self) == ServeMessage.kind, bytes.count <= ServeMessage.longest else { return nil }
        let queues = Int(reader.get(UInt16.self))
        let words = Int(reader.get(UInt16.self))
        guard (queues == 0) == (words == 0), bytes.count == 8 + queues * words * 8 else { return nil }
        affinity = (0..<queues).map { _ in (0..<words).map { _ in reader.get() } }
        guard reader.isComplete else { return nil }
    }
}

/// The maximum size of a worker's message, in bytes.
public let longestWorkerMessage = 256

/// A worker's message.
public enum WorkerMessage: Equatable, Sendable {
    /// The target is open and provides this disk.
    case geometry(Geometry)
    /// Both walls are up on every thread, and every queue has fetched all its tags.
    case sealed(SealReport)
    /// The worker cannot serve, and exits after this message.
    case failed(WorkerFailure)

    enum Kind {
        static let geometry: UInt32 = 0x5542_5701
        static let sealed: UInt32 = 0x5542_5702
        static let failed: UInt32 = 0x5542_5703
    }

    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .geometry(let geometry):
            writer.put(Kind.geometry)
            geometry.encode(to: &writer)
        case .sealed(let report):
            writer.put(Kind.sealed)
            writer.put(report.rawValue)
        case .failed(let failure):
            writer.put(Kind.failed)
            failure.encode(to: &writer)
        }
        return writer.bytes
    }

    /// nil: not a message of this protocol.
    public init?(decoding bytes: [UInt8]) {
        var reader = ByteReader(bytes)
        switch reader.get(UInt32.self) {
        case Kind.geometry:
            guard let geometry = Geometry(from: &reader) else { return nil }
            self = .geometry(geometry)
        case Kind.sealed:
            self = .sealed(SealReport(rawValue: reader.get()))
        case Kind.failed:
            guard let failure = WorkerFailure(from: &reader) else { return nil }
            self = .failed(failure)
        default:
            return nil
        }
        guard reader.isComplete else { return nil }
    }
}

/// What a worker reports beyond what the broker can check in /proc.
public struct SealReport: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Every ring has refused a forbidden operation and a forbidden registration.
    public static let rings = SealReport(rawValue: 1 << 0)
    /// No thread can make a useful ring any more (Linux 7.0).
    public static let futureRings = SealReport(rawValue: 1 << 1)
    public static let landlock = SealReport(rawValue: 1 << 2)
    /// Not a wall: its memory is locked.
    public static let lockedMemory = SealReport(rawValue: 1 << 3)
    /// Not a wall: it has one thread more than the main thread and the queues', for discards and write-zeroes.
    public static let rangeThread = SealReport(rawValue: 1 << 4)
}
