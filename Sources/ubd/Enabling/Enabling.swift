import BrokerInterface
import Glibc
import SystemCalls

/// Hands a device to its unit, which brings it back from then on.
struct Enabling {
    let manager: ServiceManager
    let name: String

    /// Enables the unit and starts it. `device`: is there already, and becomes the unit's.
    ///
    /// - Returns: what the caller should know.
    func start(_ device: Device?, _ environment: CommandEnvironment) throws(CommandFailure) -> [Notice] {
        let enabled = try manager.call(["enable", manager.unit(name)])
        guard enabled.status == 0 else { throw manager.refused("enable \(manager.unit(name))", enabled) }
        if let device { note(device) }
        defer { if device != nil { unlink(running.systemPath) } }
        try run("start")
        if let lost = try lostDevice(instead: device, environment) {
            guard !lost.isThere else {
                throw CommandFailure(
                    .failed, "NotStarted", "\(manager.unit(name)) is active with another device, ubdb\(lost.id)",
                    remedy: "'\(manager.command("stop", name))' deletes that one; then enable this one by its number")
            }
            try run("restart")
        }
        return [Notice(code: "enabled", message: when(environment))]
    }

    private func run(_ verb: String) throws(CommandFailure) {
        guard try manager.call([verb, manager.unit(name)]).status == 0 else {
            throw CommandFailure(
                .failed, "NotStarted", "\(manager.unit(name)) is enabled, and did not start",
                remedy: "'\(manager.journal(name))' says why")
        }
    }

    /// A unit that is active does nothing at a start, whether its device is there or not: the device that it had, when that is not the
    /// one that it is to have. nil: all is well, or nobody tells.
    private func lostDevice(
        instead device: Device?, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> (id: UInt32, isThere: Bool)? {
        guard let made else { return nil }
        if let device { guard made.id != device.id || made.generation != device.generation else { return nil } }
        let devices: [Device]
        do throws(CommandFailure) { devices = try BrokerClient(environment: environment).list() } catch { return nil }
        let isThere = devices.contains { $0.id == made.id && $0.generation == made.generation }
        return isThere && device == nil ? nil : (made.id, isThere)
    }

    /// When it comes back.
    private func when(_ environment: CommandEnvironment) -> String {
        let unit = "\(manager.unit(name)) brings the device back"
        if manager.isSystem { return "\(unit) at each boot, as \(manager.file(name)) says" }
        let lingers = environment.host.kind(
            of: "/var/lib/systemd/linger/\(environment.host.userName)", followsLinks: true)
        return lingers != nil
            ? "\(unit) at each boot, as \(manager.file(name)) says"
            : "\(unit) at your next login, as \(manager.file(name)) says, and deletes it after your last logout; "
                + "'loginctl enable-linger' makes it come back at boot, and stay"
    }

    // MARK: What the unit's program and this one tell each other (policy/devices/ubd-device)

    private var notes: String { "\(manager.runtime ?? "")/ubd-device/\(name)" }
    private var running: String { notes + "/running" }

    /// Tells the unit which device is its own. Without the note the start fails or adds another one, which is told.
    private func note(_ device: Device) {
        for folder in ["\(manager.runtime ?? "")/ubd-device", notes] { mkdir(folder.systemPath, 0o700) }
        let number = open(running.systemPath, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0o600)
        guard number >= 0 else { return }
        try? FileDescriptor(owning: number).writeAll(Array("\(device.id) \(device.generation)\n".utf8))
    }

    /// The device that the unit has made or taken, by number and generation; nil when it has none.
    var made: (id: UInt32, generation: UInt64)? {
        guard manager.runtime != nil, let bytes = try? readFile(notes + "/made") else { return nil }
        let words = String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isWhitespace)
        guard words.count == 2, let id = UInt32(words[0]), let generation = UInt64(words[1]) else { return nil }
        return (id, generation)
    }
}

// `ubd add --enable`.
extension AddCommand {
    /// The name that it comes back by.
    var enabledName: String {
        get throws(CommandFailure) {
            if let name = enable, !name.isEmpty {
                try EnabledName.check(name)
                return name
            }
            return try EnabledName.usual(file: ofTarget.inputs.first { $0.name == "file" }?.value, target: target)
        }
    }

    /// Writes what was asked for before anything is added: then nothing can fail between a device and its file.
    func performEnabled(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let (manager, name) = (environment.manager(environment.host.uid), try enabledName)
        let back = try ComingBack(self, named: name)
        var command = self
        // Devices of all partitions cannot have one name.
        if self.name == nil, partition != "all" { command.name = name }
        let description = DeviceDescription(
            number: number.map { String($0) } ?? DeviceDescription.anyNumber, options: back.options)
        let files = DeviceFiles(manager: manager)
        try files.create(name, description.text(name: name, manager))
        for note in back.notes { environment.console.error("ubd: note: " + note.printable) }
        do { return try command.performAdd(environment) } catch {
            files.remove(name)
            throw error
        }
    }

    /// Hands the device that was added to its unit. The device is there in any case, and so is its file.
    func enabled(_ device: Device, _ environment: CommandEnvironment) -> [Notice] {
        guard enable != nil else { return [] }
        let manager = environment.manager(environment.host.uid)
        do throws(CommandFailure) {
            return try Enabling(manager: manager, name: enabledName).start(device, environment)
        } catch {
            let file = (try? enabledName).map(manager.file) ?? manager.folder
            return [
                Notice(
                    code: "not-enabled",
                    message: "the device is there, and \(file) says how to bring it back, but nothing does so yet: "
                        + "\(error.message); \(error.remedy)")
            ]
        }
    }
}
