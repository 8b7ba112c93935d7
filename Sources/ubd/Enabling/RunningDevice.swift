import BrokerInterface
import Glibc
import SystemCalls
import Targets

/// What a device that is there was added with, as far as its description tells: for `ubd enable -n N`.
struct RunningDevice {
    let device: Device
    let target: TargetManifest

    /// - Throws: when the description cannot tell what would bring the device back.
    init(_ device: Device, uid: UInt32) throws(CommandFailure) {
        guard device.owner == uid else {
            throw CommandFailure(
                .notPermitted, "NotPermitted", "device \(device.id) belongs to uid \(device.owner)",
                remedy: "let its owner enable it: it comes back with the rights of whoever does")
        }
        guard let target = try? TargetManifest.named(device.target) else {
            throw CommandFailure(
                .failed, "UnknownTarget", "this ubd does not know target \(device.target)",
                remedy: "install the version of ubd that added the device")
        }
        // Its server's name, and how that is dialled, went to `ubd-nbd` only.
        guard !target.takesSockets else {
            throw CommandFailure(
                .usage, "NotKnown", "nobody knows any more how the server of device \(device.id) was named and dialled",
                remedy: "'ubd del -n \(device.id)', then add it again with --enable")
        }
        // Neither the broker's list nor anything else has the options that only its target has, or where its layer is.
        guard target.givenOptions.allSatisfy({ $0.number < TargetOption.firstOwn }), !target.hasBlockMap else {
            throw CommandFailure(
                .usage, "NotKnown",
                "nobody knows any more with which options of target \(target.name) device \(device.id) was added",
                remedy: "'ubd del -n \(device.id)', then add it again with --enable")
        }
        (self.device, self.target) = (device, target)
    }

    /// The command that adds it again.
    ///
    /// - Parameter named: its file, when its user names it.
    func command(file named: String?, key: KeyOptions, seconds: Int) throws(CommandFailure) -> AddCommand {
        var inputs: [(String, String)] = []
        var given: [(String, String?)] = []
        var file: String?
        if let input = target.givenInputs.first {
            let path = try path(named, input)
            inputs = [(input.name, path)]
            file = path
        } else if let named {
            throw CommandFailure(
                .usage, "Usage", "device \(device.id) has no file, so '\(named)' would not be used",
                remedy: "leave --file out")
        }
        if !target.takesSecret, let key = key.given {
            throw CommandFailure(
                .usage, "Usage", "device \(device.id) has no key, so \(key) would not be used", remedy: "leave it out")
        }
        for option in target.givenOptions {
            if option.number == TargetOption.Common.buffered {
                if device.buffered { given.append((option.name, nil)) }
            } else if let value = try value(of: option, file, seconds) {
                given.append((option.name, value))
            }
        }
        let depth = Int64(device.depth)
        return AddCommand(
            target: target.name, ofTarget: TargetArguments(inputs: inputs, given: given),
            queues: Int64(device.queues),
            depth: depth == AddPlan.depth(target, queues: device.queues) ? nil : depth,
            maxIOSize: Int64(device.maxIOBytes) == AddPlan.defaultMaxIOBytes
                ? nil : ByteCount(argument: String(device.maxIOBytes)),
            readOnly: device.readOnly,
            recovery: device.recovery == .default ? nil : device.recovery.rawValue,
            ioTimeout: device.ioTimeout == AddPlan.usualIOTimeout ? nil : device.ioTimeout,
            // Not the mode: one that was chosen for this kernel is perhaps none of the next one's.
            mode: nil, cpus: device.cpus?.text, shared: false, partition: device.partition.map(String.init),
            dial: DialOptions(), key: key, restartCommand: false, server: [], name: device.name, asJSON: false)
    }

    /// Its file: the one that its user names, or the one on record if that is named from / on.
    private func path(_ named: String?, _ input: TargetInput) throws(CommandFailure) -> String {
        if let named { return named }
        guard let label = device.file.map(MountMark.removed), label.hasPrefix("/") else {
            throw CommandFailure(
                .usage, "Usage",
                "device \(device.id) was added with \(device.file.map { "'\($0)'" } ?? "a file"), and nobody knows in which folder that is",
                remedy: "name it with --\(input.name)")
        }
        return label
    }

    /// An option that is not as it would be by default; nil when it is.
    private func value(
        of option: TargetOption, _ file: String?, _ seconds: Int
    ) throws(CommandFailure) -> String? {
        // The table of partitions says where a partition lies.
        guard device.partition == nil else { return nil }
        switch option.number {
        case TargetOption.Common.offset:
            return device.offset.flatMap { $0 == 0 ? nil : String($0) }
        case TargetOption.Common.size:
            let usual = try file.map { (file) throws(CommandFailure) in try sizeToTheEnd(of: file) }
            let isUsual = (usual ?? option.initial?.number) == device.sizeBytes
            return isUsual ? nil : String(device.sizeBytes)
        case TargetOption.Common.blockSize:
            let isUsual = try device.blockSize == usualBlockSize(file, seconds)
            return isUsual ? nil : String(device.blockSize)
        default: return nil
        }
    }

    /// Bytes up to the end of the file, in blocks of the device.
    private func sizeToTheEnd(of path: String) throws(CommandFailure) -> UInt64 {
        let file = try BackingFile.openToLook(path)
        let end = lseek(file.raw, 0, SEEK_END)
        guard end >= 0 else {
            throw CommandFailure(SystemError("seek in \(path)", errno), remedy: "name a file that can be read")
        }
        let (offset, block) = (UInt64(clamping: device.offset ?? 0), UInt64(max(device.blockSize, 1)))
        let bytes = UInt64(end)
        return bytes > offset ? (bytes - offset) / block * block : 0
    }

    /// The size of blocks that `ubd add` would choose.
    private func usualBlockSize(_ file: String?, _ seconds: Int) throws(CommandFailure) -> UInt32 {
        guard let file else { return 512 }
        do throws(SystemError) {
            let content = try ContentSectors.look(
                at: file, offset: UInt64(clamping: device.offset ?? 0), seconds: seconds)
            return content?.otherThanUsual.map { UInt32($0) } ?? 512
        } catch {
            // Said, it is right in any case.
            return 0
        }
    }
}
