import Glibc
import KernelABI
import NBDProtocol
import SystemCalls
import Targets
import WorkerProtocol

extension NBDTarget: ServedTarget {
    static var manifest: TargetManifest { .nbd }

    /// Opens the target on connected sockets, one for each queue. Whoever negotiated says what was agreed on; here it is checked.
    static func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel _: KernelVersion, canWait _: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        guard files.count == Int(launch.queues) else {
            throw WorkerFailure(.fileCount, detail: UInt64(files.count))
        }
        for (index, file) in files.enumerated() {
            let isTwice = files[..<index].contains { $0.status.st_ino == file.status.st_ino }
            if isTwice { throw WorkerFailure(.socketTwice, detail: UInt64(index)) }
            try ClientSocket(file.descriptor).check(
                index: index, onlyLocal: launch.flags.contains(.localSockets))
        }
        let plan = try NBDPlan(launch)
        // A write to a connection that is gone must be an error, not a death.
        signal(SIGPIPE, SIG_IGN)
        var open = OpenTarget(served: NBDTarget(plan.rules), geometry: plan.geometry, files: [])
        open.sockets = files.map(\.descriptor)
        return open
    }
}

/// The disk that an agreement gives. Pure: no system call.
struct NBDPlan: Equatable, Sendable {
    /// 512-byte sectors of one write-zeroes: a server may write them one by one.
    static let mostZeroSectors: UInt32 = 64 << 11

    let rules: NBDRules
    let geometry: Geometry

    init(_ launch: LaunchMessage) throws(WorkerFailure) {
        let options = launch.options
        let flags = NBD.ExportFlags(rawValue: options.exportFlags)
        guard flags.contains(.hasFlags) else { throw NBDPlan.wrong(TargetOption.NBD.exportFlags) }
        if launch.queues > 1, !flags.contains(.canMultiConn) {
            throw WorkerFailure(.oneConnectionOnly, detail: UInt64(launch.queues))
        }
        let minimum = options.minimumBlock
        let block = options.blockSize ?? 512
        try checkBlockSize(block, minimum: max(512, minimum))
        guard options.preferredBlock >= minimum else { throw NBDPlan.wrong(TargetOption.NBD.preferredBlock) }
        guard options.maximumBlock >= block else { throw NBDPlan.wrong(TargetOption.NBD.maximumBlock) }
        guard let exported = options.size, exported <= UInt64(Int64.max) else {
            throw NBDPlan.wrong(TargetOption.Common.size)
        }
        let size = exported / UInt64(block) * UInt64(block)
        guard size > 0 else { throw WorkerFailure(.smallerThanBlock, detail: UInt64(block)) }

        let readOnly = launch.flags.contains(.readOnly) || flags.contains(.readOnly)
        rules = NBDRules(
            flags, bounds: DiskBounds(size: size, maxIOBytes: launch.maxIOBytes), minimumBlock: minimum,
            maximumBlock: options.maximumBlock, readOnly: readOnly, writeThrough: options.writeThrough)
        if options.writeThrough, !readOnly, !rules.forces, !rules.flushes { throw WorkerFailure(.noStableStorage) }

        let preferred = min(max(options.preferredBlock, block), 1 << 20)
        var geometry = Geometry(
            size: size, logicalBlock: block, physicalBlock: 1 << (31 - UInt32(preferred.leadingZeroBitCount)))
        if size != exported { geometry.attributes.insert(.sizeRoundedDown) }
        if flags.contains(.rotational) { geometry.attributes.insert(.rotational) }
        if readOnly { geometry.attributes.insert(.readOnly) }
        if flags.contains(.readOnly) { geometry.attributes.insert(.fileReadOnly) }
        if !readOnly { NBDPlan.allowWrites(&geometry, rules, options) }
        self.geometry = geometry
    }

    private static func allowWrites(_ geometry: inout Geometry, _ rules: NBDRules, _ options: DeviceOptions) {
        // With write-through there is nothing to flush.
        if rules.flushes, !rules.writeThrough {
            geometry.attributes.insert(.volatileCache)
            // Without it the kernel lets a flush follow instead.
            if rules.forces { geometry.attributes.insert(.fua) }
        }
        if rules.trims {
            geometry.discardGranularity = geometry.logicalBlock
            // A length has 32 bits.
            geometry.maxDiscardSectors = Geometry.longestRangeSectors
        }
        // There is no request of the block layer's that is to fail when it is not quick, so FAST_ZERO is never asked for.
        if rules.zeroes { geometry.maxWriteZeroesSectors = min(mostZeroSectors, rules.maximum >> 9) }
    }

    private static func wrong(_ option: TargetOption.Number) -> WorkerFailure {
        WorkerFailure(.agreement, errno: EINVAL, detail: UInt64(option))
    }
}
