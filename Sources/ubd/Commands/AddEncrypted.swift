import BrokerInterface
import Dialing
import Glibc
import SystemCalls
import Targets

// `ubd add` of a target with a secret: `ubd-crypt` opens the volume, the broker makes the device of its file and its key.
extension AddCommand {
    func performEncrypted(
        _ plan: AddPlan, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> ExitStatus {
        try refuseDialling(plan.target)
        if let partition { throw Self.noParts(plan.target, partition) }
        if let option = try ofTarget.options.first {
            throw CommandFailure(
                .usage, "Usage",
                "the header of a LUKS volume says its \(option.name), so --\(option.name) would not be used",
                remedy: "leave it out")
        }
        guard let (path, input) = try file(for: plan.target) else { return .failed }
        let unlocked = try UnlockedKey.take(path, key, environment)
        var options = plan.options
        options.offset = unlocked.volume.offset
        options.blockSize = unlocked.volume.sectorSize
        options.size = unlocked.volume.size
        try refuseShort(path, unlocked.volume, bytes: UInt64(clamping: unlocked.status.st_size))
        let backing = try open(path, input, options)
        try unlocked.check(isOf: backing, path)
        var request = try self.request
        request.options += unlocked.volume.options.map { OptionValue($0.name, $0.value) }
        request.fileName = MountMark.absent(Self.label(path))
        if backing.readOnly { request.readOnly = true }
        let (complete, files) = (request, backing.numbers + [unlocked.key.raw])
        let told = backing.notices
        try Interruption.untilTold(environment) { (environment) throws(CommandFailure) in
            let (device, notices) = try BrokerClient(environment: environment).add(complete, files: files)
            show(device, told + notices.filter { notice in !told.contains { $0.code == notice.code } }, environment)
        }
        return .success
    }

    /// A volume whose data, or a part of it, is not there.
    private func refuseShort(_ path: String, _ volume: UnlockedVolume, bytes: UInt64) throws(CommandFailure) {
        let (end, isBeyond) = volume.offset.addingReportingOverflow(volume.size ?? UInt64(volume.sectorSize))
        guard isBeyond || end > bytes else { return }
        throw CommandFailure(
            .usage, "BadFile",
            "\(path) has \(bytes) bytes, and by its header the volume's data lies in bytes \(volume.offset) to \(isBeyond ? .max : end), or more",
            remedy: "the file was cut short, or is not that of this header: take it from a copy")
    }

    /// Options that mean nothing for a target without a secret.
    func refuseKeys(_ target: TargetManifest) throws(CommandFailure) {
        guard let what = key.given else { return }
        throw CommandFailure(
            .usage, "Usage", "target \(target.name) has no key, so \(what) would not be used",
            remedy: "leave it out, or use --target crypt")
    }
}

extension UnlockedVolume {
    /// What the header says, under the names that the options of target crypt have.
    var options: [(name: String, value: String)] {
        var options = [
            ("offset", String(offset)), ("block-size", String(sectorSize)), ("first-sector", String(firstSector)),
            ("key-mark", String(keyMark)),
        ]
        if let size { options.append(("size", String(size))) }
        return options
    }
}
