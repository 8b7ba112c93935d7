import BrokerInterface
import Glibc
import SystemCalls
import Targets

// `ubd add` of a target with a layer: `ubd` makes layer and map, and opens the base for reading.
extension AddCommand {
    func performLayered(
        _ plan: AddPlan, _ request: AddRequest, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> ExitStatus {
        if let partition { throw Self.noParts(plan.target, partition) }
        if readOnly {
            throw CommandFailure(
                .usage, "Usage", "a read-only overlay would stay what its file is",
                remedy: "leave --read-only out, or use --target loop with it")
        }
        try layer.memory?.checked("--memory")
        guard let (path, input) = try file(for: plan.target) else { return .failed }
        // The device may be larger than the file.
        var options = plan.options
        options.size = nil
        let base = try open(path, input, options)
        base.stayWaitless()
        let (size, told) = try look(at: base, path)
        var sized = plan.options
        if sized.size == nil { sized.size = size - size % UInt64(plan.options.blockSize ?? 512) }
        guard let bytes = sized.size, bytes > 0, bytes <= BlockMap.largestDisk else {
            throw CommandFailure(
                .usage, "BadFile", "\(path) has \(size) bytes, and an overlay can have 512 to \(BlockMap.largestDisk)",
                remedy: "give another file, or a --size")
        }
        let made = try OverlayLayer.make(size: bytes, memory: layer.memory?.bytes ?? 0, scratch: layer.folder)
        var complete = request
        if plan.options.size == nil { complete.options.append(OptionValue("size", String(bytes))) }
        complete.options.append(OptionValue("layer-kind", made.kind.rawValue))
        let (asked, sizedPlan) = (complete, try Self.plan(complete))
        try Interruption.untilTold(environment) { (environment) throws(CommandFailure) in
            let client = BrokerClient(environment: environment)
            let (device, notices) = try add(base, path, with: made.numbers, asked, sizedPlan, client)
            show(device, told + notices, environment)
        }
        return .success
    }

    /// Bytes of the base, and what its user should know of it.
    private func look(
        at base: borrowing BackingFile, _ path: String
    ) throws(CommandFailure) -> (size: UInt64, told: [Notice]) {
        let file = base.numbers[0]
        var status = stat()
        let end = lseek(file, 0, Int32(SEEK_END))
        guard fstat(file, &status) == 0, end >= 0 else {
            throw CommandFailure(
                SystemError("read the size of \(path)", errno), remedy: "give a regular file or a disk")
        }
        return (UInt64(end), Self.othersWrite(path, status).map { [$0] } ?? [])
    }

    /// The note for a base that others may write: what they change shows through.
    static func othersWrite(_ path: String, _ status: stat) -> Notice? {
        var who: [String] = []
        if status.st_uid != getuid(), status.st_uid != 0 { who.append("its owner (uid \(status.st_uid))") }
        if status.st_mode & S_IWGRP != 0 { who.append("group \(status.st_gid)") }
        if status.st_mode & S_IWOTH != 0 { who.append("everybody") }
        if who.isEmpty { return nil }
        return Notice(
            code: "base-writable",
            message:
                "\(who.joined(separator: " and ")) may write \(path): a change of it changes what the device reads")
    }

    /// Options that mean nothing for a target without a layer.
    func refuseLayers(_ target: TargetManifest) throws(CommandFailure) {
        guard !target.hasBlockMap, let what = layer.given else { return }
        throw CommandFailure(
            .usage, "Usage", "target \(target.name) has no layer, so \(what) would not be used",
            remedy: "leave it out, or use --target overlay")
    }
}
