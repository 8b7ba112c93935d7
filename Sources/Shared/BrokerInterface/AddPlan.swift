import Targets
import Varlink

/// An `AddRequest` with all values within the limits of the kernel and the target. Access policy and quota are checked
/// elsewhere.
public struct AddPlan: Sendable {
    public let target: TargetManifest
    /// The requested N of /dev/ublkbN.
    public let id: UInt32?
    /// Hardware queues.
    public let queues: UInt16
    /// Tags per queue.
    public let depth: UInt16
    /// Maximum bytes of one request.
    public let maxIOBytes: UInt32
    public let readOnly: Bool
    /// The file may be behind another user's device.
    public let shared: Bool
    /// nil: the best mode that is allowed.
    public let mode: DataMode?
    public let recovery: RecoveryMode
    /// Seconds; nil: the broker's default.
    public let ioTimeout: Int64?
    /// nil: the processors from which the kernel sends each queue its requests.
    public let cpus: CPUList?
    /// A label without control characters, at most 1024 bytes.
    public let fileName: String?
    public let name: String?
    /// Labels: see `Device`.
    public let partition, set: Int64?
    public let options: DeviceOptions

    /// ublk numbers its devices below 2^20 (UBLK_MINORS, drivers/block/ublk_drv.c).
    public static let ids: ClosedRange<Int64> = 0...((1 << 20) - 1)
    /// UBLK_MAX_NR_QUEUES, include/uapi/linux/ublk_cmd.h.
    public static let queueCounts: ClosedRange<Int64> = 1...4096
    /// UBLK_MAX_QUEUE_DEPTH, include/uapi/linux/ublk_cmd.h.
    public static let depths: ClosedRange<Int64> = 1...4096
    /// From one page to the maximum of UBLK_IO_BUF_BITS (25 bits).
    public static let ioSizes: ClosedRange<Int64> = 4096...(1 << 25)
    /// Seconds without progress after which a worker that has work counts as hung.
    public static let ioTimeouts: ClosedRange<Int64> = 2...3600
    /// The numbers of partitions.
    public static let partitions: ClosedRange<Int64> = 1...65536
    /// The maximum length of a file's label in bytes.
    public static let longestFileName = 1024

    public static let defaultQueues: Int64 = 1
    public static let defaultDepth: Int64 = 128
    /// Tags of all queues together that a device of a target with spare buffers has by default, and the least of each: so it
    /// needs no more memory than the shipped access policy gives one user (a test compares them).
    public static let defaultDepthInAll: Int64 = 256
    public static let leastDefaultDepth: Int64 = 32
    public static let defaultMaxIOBytes: Int64 = 512 << 10
    /// Seconds: the `ioTimeout` of a broker that was given none.
    public static let usualIOTimeout: Int64 = 30

    /// Bytes of the device's I/O buffers: queues × depth × maxIOBytes, the target's spare ones, and its tables or cache. The ranges
    /// above keep it within 64 bits.
    public var bufferBytes: UInt64 {
        UInt64(queues) * UInt64(target.buffers(depth: depth)) * UInt64(maxIOBytes) + extraBytes
    }

    /// Bytes of the tables or the cache among them.
    public var extraBytes: UInt64 { target.tableBytes(options, depth: depth) + target.cacheBytes(options) }

    /// Bytes of memory for the device's content; 0 unless it is a memory disk, or has a layer in memory.
    public var diskBytes: UInt64 { target.contentBytes(options) }

    /// The maximum of `bufferBytes`; a target with tables has one queue.
    public static let mostBufferBytes = queueCounts.upperBound * depths.upperBound * ioSizes.upperBound

    /// The maximum number of descriptors that the client may send for all inputs, when the kernel has given the device this
    /// many queues.
    public func mostDescriptors(queues: UInt16) -> Int {
        target.descriptors(options, queues: Int(queues)).upperBound
    }

    /// Checks a request.
    ///
    /// - Throws: `InterfaceError.invalidOption` with the parameter, its value, and the accepted values.
    public init(_ request: AddRequest) throws(InterfaceError) {
        target = try TargetManifest.named(request.target)
        id = try request.id.map { (id) throws(InterfaceError) in
            UInt32(try Self.check("id", id, Self.ids))
        }
        queues = UInt16(try Self.check("queues", request.queues ?? Self.defaultQueues, Self.queueCounts))
        depth = UInt16(try Self.check("depth", request.depth ?? Self.depth(target, queues: queues), Self.depths))
        let ioBytes = try Self.check("maxIOBytes", request.maxIOBytes ?? Self.defaultMaxIOBytes, Self.ioSizes)
        guard ioBytes.isMultiple(of: 4096) else {
            throw .invalidOption(
                message: "maxIOBytes can not be \(ioBytes)", remedy: "give a multiple of 4096 bytes",
                option: "maxIOBytes", value: String(ioBytes))
        }
        maxIOBytes = UInt32(ioBytes)
        readOnly = request.readOnly ?? false
        shared = request.shared ?? false
        mode = try Self.checkMode(request.mode)
        recovery = try Self.checkRecovery(request.recovery)
        ioTimeout = try request.ioTimeout.map { (seconds) throws(InterfaceError) in
            try Self.check("ioTimeout", seconds, Self.ioTimeouts)
        }
        cpus = try Self.checkCPUs(request.cpus)
        fileName = try Self.checkFileName(request.fileName, target)
        name = try Self.checkName(request.name)
        partition = try request.partition.map { (number) throws(InterfaceError) in
            try Self.check("partition", number, Self.partitions)
        }
        set = try request.set.map { (number) throws(InterfaceError) in
            try Self.check("set", number, 1...Int64.max)
        }
        options = try DeviceOptions(target: target, options: request.options)
        try checkQueues()
    }

    /// The default depth of each queue.
    public static func depth(_ target: TargetManifest, queues: UInt16) -> Int64 {
        guard target.spareBuffers > 0 else { return defaultDepth }
        return max(leastDefaultDepth, min(defaultDepth, defaultDepthInAll / Int64(queues)))
    }

    private static func check(
        _ name: String, _ value: Int64, _ range: ClosedRange<Int64>
    ) throws(InterfaceError) -> Int64 {
        guard range.contains(value) else {
            throw .invalidOption(
                message: "\(name) can not be \(value)",
                remedy: "give a number from \(range.lowerBound) to \(range.upperBound)", option: name,
                value: String(value))
        }
        return value
    }

    private func checkQueues() throws(InterfaceError) {
        if target.queues == .onePerConnection { try checkConnections() }
        guard target.queues == .one, queues > 1 else { return }
        throw .invalidOption(
            message: "queues can not be \(queues): a \(target.name) device has a single one", remedy: "leave it out",
            option: "queues", value: String(queues))
    }

    /// Each queue has a connection of its own.
    private func checkConnections() throws(InterfaceError) {
        guard Int(queues) <= TargetManifest.mostDescriptors else {
            throw .invalidOption(
                message:
                    "queues can not be \(queues): a \(target.name) device has a connection for each queue, at most "
                    + "\(TargetManifest.mostDescriptors)", remedy: "give fewer", option: "queues",
                value: String(queues))
        }
        guard let connections = options.connections, connections != Int(queues) else { return }
        throw .invalidOption(
            message: "connections can not be \(connections) with \(queues) queues: each queue has one connection",
            remedy: "give the same number", option: "connections", value: String(connections))
    }

    private static func checkMode(_ name: String?) throws(InterfaceError) -> DataMode? {
        guard let name, !name.hasSameBytes(as: DataMode.automatic) else { return nil }
        if let mode = DataMode.allCases.first(where: { $0.rawValue.hasSameBytes(as: name) }) { return mode }
        let names = DataMode.allCases.map(\.rawValue) + [DataMode.automatic]
        throw .invalidOption(
            message: "mode can not be '\(InterfaceError.shown(name))'",
            remedy: "give one of: \(names.joined(separator: ", "))", option: "mode", value: InterfaceError.shown(name))
    }

    private static func checkRecovery(_ name: String?) throws(InterfaceError) -> RecoveryMode {
        guard let name else { return .default }
        if let mode = RecoveryMode.allCases.first(where: { $0.rawValue.hasSameBytes(as: name) }) { return mode }
        throw .invalidOption(
            message: "recovery can not be '\(InterfaceError.shown(name))'",
            remedy: "give one of: \(RecoveryMode.allCases.map(\.rawValue).joined(separator: ", "))",
            option: "recovery", value: InterfaceError.shown(name))
    }

    private static func checkCPUs(_ text: String?) throws(InterfaceError) -> CPUList? {
        guard let text else { return nil }
        if let cpus = CPUList(text) { return cpus }
        throw .invalidOption(
            message: "cpus can not be '\(InterfaceError.shown(text))'",
            remedy: "give numbers up to \(CPUList.highest) and ranges, as in 0-1,3", option: "cpus",
            value: InterfaceError.shown(text))
    }

    private static func checkName(_ name: String?) throws(InterfaceError) -> String? {
        guard let name, !DeviceName.isValid(name) else { return name }
        throw .invalidOption(
            message: "name can not be '\(InterfaceError.shown(name))'", remedy: "give \(DeviceName.rule)",
            option: "name", value: InterfaceError.shown(name))
    }

    private static func checkFileName(
        _ name: String?, _ target: TargetManifest
    ) throws(InterfaceError) -> String? {
        guard let name else { return nil }
        guard !target.inputs.isEmpty else {
            throw .invalidOption(
                message: "target \(target.name) takes no file", remedy: "leave fileName out", option: "fileName",
                value: InterfaceError.shown(name))
        }
        guard !name.isEmpty, name.utf8.count <= longestFileName, !name.unicodeScalars.contains(where: \.isControl)
        else {
            throw .invalidOption(
                message: "fileName can not be '\(InterfaceError.shown(name))'",
                remedy: "give 1 to \(longestFileName) bytes without control characters", option: "fileName",
                value: InterfaceError.shown(name))
        }
        return name
    }
}

extension DeviceOptions {
    /// The options in the launch message. The number of connections is the number of queues there, which the kernel may have
    /// reduced.
    public var served: DeviceOptions {
        var options = self
        options[TargetOption.NBD.connections] = nil
        return options
    }
}
