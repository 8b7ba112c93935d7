import ArgumentParser
import BrokerInterface
import Glibc
import SystemCalls
import Varlink

/// `ubd umount`: takes a mount of `ubd mount` away, and the device if `ubd mount` made it.
struct UnmountCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "umount",
        abstract: "Unmount what 'ubd mount' mounted, and delete the device that it made.",
        discussion: """
            EXAMPLES
              ubd umount mnt

            Waits until the server has written everything and ended, flushes the device and deletes it. A device that was
            there before 'ubd mount' stays. A directory that a program uses stays mounted, and the device stays.
            It ends with status 1 when writes to the device have failed, as on a full disk: no program is told before.
            When the server has died, the device keeps what it had written: 'ubd umount' takes the rest away.
            """)

    @Argument(help: ArgumentHelp("The directory.", valueName: "dir"), completion: .directory)
    var directory: String

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        let (place, mount) = try find(client)
        // Asked first: without an answer nothing is taken away. Root may have mounted a device of another user's.
        let device = try client.list().first { $0.node == mount.source }
        let servers = device.map { DeviceOpener.servers(of: $0.node) } ?? []
        let before = try mounts().filter { $0 == mount }.count
        let said = try Unmount.run(place, seconds: environment.mountSeconds)
        // The table decides, whatever fusermount says.
        let after = try mounts()
        guard after.filter({ $0 == mount }).count < before else {
            throw refused(said ?? "fusermount ended well, and it is mounted", device)
        }
        guard let device else {
            environment.console.error("ubd: note: its device, \(mount.source), is gone already".printable)
            show(nil, .gone, environment)
            return .success
        }
        // The node's name was another device's perhaps, whose server has died: then this one is in use by another mount.
        if let other = after.first(where: { $0.source == device.node && $0.user == environment.host.uid }) {
            show(device, .mounted(String(decoding: other.point, as: UTF8.self)), environment)
            return .success
        }
        let end = MountEnd(device: device, directory: directory, client: client)
        try end.wait(for: servers)
        let isMade = MountMark.isOn(device.file) && device.owner == environment.host.uid
        try end.flush(hadServer: !servers.isEmpty)
        let lost = try end.lostWrites(isMade: isMade)
        if isMade { try delete(device, environment) }
        if let lost { throw lost }
        show(device, isMade ? .deleted : .stays, environment)
        return .success
    }

    private func mounts() throws(CommandFailure) -> [MountedPlace] {
        do { return try MountedPlace.all() } catch { throw MountedPlace.unread(error) }
    }

    private func find(_ client: BrokerClient) throws(CommandFailure) -> (place: [UInt8], mount: MountedPlace) {
        let found: (path: [UInt8], mount: MountedPlace?)?
        do { found = try MountPoint.mounted(directory) } catch { throw MountedPlace.unread(error) }
        guard let found else {
            throw CommandFailure(
                .usage, "BadDirectory", "\(directory) is not there", remedy: "give the directory of 'ubd mount'")
        }
        guard let mount = found.mount else { throw try nothing(client) }
        guard mount.type.hasPrefix("fuse"), ["/dev/ublkb", "/dev/ubdb"].contains(where: mount.source.hasPrefix) else {
            throw CommandFailure(
                .usage, "NotOurs",
                "'ubd mount' has not mounted \(directory): it is \(mount.source), type \(mount.type)",
                remedy: "unmount it as it was mounted, with 'fusermount3 -u' or umount")
        }
        // Whoever mounts gives the source its name: another user's says nothing of a device of this one.
        guard mount.user == client.environment.host.uid else {
            throw CommandFailure(
                .notPermitted, "NotOurs",
                "\(directory) is a mount of user \(mount.user.map { String($0) } ?? "unknown"), who is not you",
                remedy: "let that user type 'ubd umount', or unmount it with umount")
        }
        return (found.path, mount)
    }

    /// Somebody else has unmounted it perhaps: then its device is left.
    private func nothing(_ client: BrokerClient) throws(CommandFailure) -> CommandFailure {
        let mounts = ((try? MountedPlace.all()) ?? []).filter { $0.user == client.environment.host.uid }
        let mounted = Set(mounts.map(\.source))
        let left = try client.list().filter {
            MountMark.isOn($0.file) && $0.owner == client.environment.host.uid && !mounted.contains($0.node)
        }
        let commands = left.map { "'ubd del -n \($0.id)'" }.joined(separator: ", ")
        return CommandFailure(
            .usage, "NotMounted", "nothing is mounted on \(directory)",
            remedy: left.isEmpty
                ? "'ubd list' shows your devices" : "devices of 'ubd mount' without a mount are left: \(commands)")
    }

    private func refused(_ said: String, _ device: Device?) -> CommandFailure {
        let stays = device.map { ", so it stays mounted and \($0.link ?? $0.node) stays" } ?? ", so it stays mounted"
        let isBusy = said.contains("busy")
        return CommandFailure(
            isBusy ? .busy : .failed, isBusy ? "Busy" : "NotUnmounted",
            (isBusy ? "\(directory) is in use" : "\(directory) could not be unmounted") + stays + " (\(said))",
            remedy: isBusy
                ? "leave the directory in every shell, and end the programs that 'fuser -vm' names" : "try again")
    }

    private func delete(_ device: Device, _ environment: CommandEnvironment) throws(CommandFailure) {
        // Its number may be another device's by now.
        guard try BrokerClient(environment: environment).list(id: device.id).first?.generation == device.generation
        else { return }
        do throws(CommandFailure) {
            _ = try DeleteCommand(number: device.id, all: false, force: false, asJSON: false)
                .perform(environment)
        } catch {
            if error.status == .noSuchDevice { return }
            var failure = error
            failure.message = "\(directory) is unmounted, and its device is left: \(error.message)"
            throw failure
        }
    }

    /// What became of the device.
    private enum DeviceEnd: Equatable {
        case gone
        case deleted
        case stays
        /// Also at this directory.
        case mounted(String)
    }

    private func show(_ device: Device?, _ end: DeviceEnd, _ environment: CommandEnvironment) {
        if output.asJSON {
            let json = JSON.record([
                ("directory", .string(directory.readable)), ("device", device?.json),
                ("deleted", .bool(end == .deleted)),
            ])
            environment.console.out(json.indentedText)
        } else if let device {
            let what =
                switch end {
                case .deleted: "is deleted"
                case .mounted(let other): "stays, as it is mounted on \(other.printable)"
                case .stays, .gone: "stays, as it was there before"
                }
            environment.console.aside(
                "ubd: \(directory.printable) is unmounted; \((device.link ?? device.node).printable) \(what)")
        }
    }
}
