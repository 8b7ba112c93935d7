import ArgumentParser
import BrokerInterface
import Varlink

/// `ubd enable`: a device comes back by itself from now on.
struct EnableCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "enable",
        abstract: "Let a device come back by itself, at boot or login.",
        discussion: """
            EXAMPLES
              ubd enable -n 3 -f disk.img mine    device 3, from now on under the name 'mine'
              ubd enable -n 3                     named like its file, if that was named from / on
              ubd enable mine                     of a file that you have written (ubd.device(5))
              ubd add -t loop -f disk.img --enable=mine    added and enabled at once, with all that was asked for

            Writes what brings the device back to $XDG_CONFIG_HOME/ubd/devices/NAME.conf (root: /etc/ubd/devices), then
            enables and starts its unit, which takes over the device that is there: ubd@NAME.service of your service
            manager (root: ubd-device@NAME.service). A user's device comes back at login; with 'loginctl enable-linger' at
            boot. A stop of the unit deletes the device.
            The broker knows no names of files. So with -n the file is the one on record if that was named from / on, else
            -f says it; the mode is chosen anew at each start. 'ubd list --enabled' shows what is enabled, 'ubd disable'
            ends it. A device of target nbd must be enabled when it is added. A crypt device needs a key in a file.
            """)

    @Option(name: [.customShort("n"), .long], help: ArgumentHelp("The device that is there.", valueName: "id"))
    var number: UInt32?

    @Option(
        name: [.short, .long], help: ArgumentHelp("The file or block device behind it.", valueName: "path"),
        completion: .file())
    var file: String?

    @Option(
        name: .customLong("key-file"),
        help: ArgumentHelp("The file with the key of a LUKS volume, for each start.", valueName: "path"),
        completion: .file())
    var keyFile: String?

    @Option(help: ArgumentHelp("The file with a detached LUKS header.", valueName: "path"), completion: .file())
    var header: String?

    @OptionGroup var output: OutputOptions

    @Argument(
        help: ArgumentHelp("Letters, digits and . _ -, at most 32. (default: the file's name)", valueName: "name"))
    var name: String?

    func validate() throws {
        guard number != nil || name != nil else { throw ValidationError("Give --number ID, or the name of a file") }
        guard number != nil || file == nil && keyFile == nil && header == nil else {
            throw ValidationError("--file, --key-file and --header describe a device: give --number ID with them")
        }
    }

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let manager = environment.manager(environment.host.uid)
        let (name, device, notes): (String, Device?, [String])
        if let number {
            (name, device, notes) = try describe(number, manager, environment)
        } else {
            name = self.name ?? ""
            try EnabledName.check(name)
            try check(DeviceFiles(manager: manager).read(name), manager.file(name))
            (device, notes) = (nil, [])
        }
        let started = try Enabling(manager: manager, name: name).start(device, environment)
        let notices = notes.map { Notice(code: "enabled", message: $0) } + started
        for notice in notices { environment.console.error("ubd: note: " + notice.message.printable) }
        if output.asJSON {
            let json = JSON.record([
                ("name", .string(name)), ("path", .string(manager.file(name).readable)),
                ("unit", .string(manager.unit(name))), ("device", device.map { .integer(Int64($0.id)) }),
                ("notices", .array(notices.map(\.json))),
            ])
            environment.console.out(json.indentedText)
        } else {
            environment.console.out(manager.file(name).printable)
        }
        return .success
    }

    /// Writes the file of a device that is there.
    private func describe(
        _ number: UInt32, _ manager: ServiceManager, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> (String, Device?, [String]) {
        guard let device = try BrokerClient(environment: environment).list(id: number).first else {
            throw ListCommand.noSuchDevice(number)
        }
        let key = KeyOptions(keyFile: keyFile, descriptor: nil, header: header)
        let command = try RunningDevice(device, uid: environment.host.uid)
            .command(file: file, key: key, seconds: environment.lookSeconds)
        let path = command.ofTarget.inputs.first?.value
        let name: String
        if let given = self.name {
            name = given
        } else {
            name = try EnabledName.usual(file: path, target: device.target)
        }
        try EnabledName.check(name)
        var back = try ComingBack(command, named: name)
        if device.name == nil {
            back.notes.append(
                "\(DeviceName.folder)/\(DeviceName.link(name, owner: device.owner)) leads to it from its next start on")
        }
        let description = DeviceDescription(number: String(number), options: back.options)
        try DeviceFiles(manager: manager).create(name, description.text(name: name, manager))
        return (name, device, back.notes)
    }

    /// Somebody has written it: said here, a mistake is easier to find than in the journal.
    private func check(_ description: DeviceDescription, _ path: String) throws(CommandFailure) {
        if let problem = description.problem {
            throw CommandFailure(.usage, "BadFile", "\(path): \(problem)", remedy: "put it right: see ubd.device(5)")
        }
    }
}

/// `ubd disable`: a device does not come back any more.
struct DisableCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "disable",
        abstract: "Let a device not come back any more; it goes on running.",
        discussion: """
            EXAMPLES
              ubd disable mine                 then 'ubd del -n N' when it is not needed now either

            The device stays until somebody deletes it or stops its unit, as a shutdown does. So does its file in
            $XDG_CONFIG_HOME/ubd/devices (root: /etc/ubd/devices): 'ubd enable mine' enables it again.
            """)

    @OptionGroup var output: OutputOptions

    @Argument(
        help: ArgumentHelp("As 'ubd list --enabled' shows it.", valueName: "name"))
    var name: String

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        try EnabledName.check(name)
        let manager = environment.manager(environment.host.uid)
        let before = try manager.states([name])[name]
        let isThere = DeviceFiles(manager: manager).exists(name)
        guard isThere || before?.enabled == "enabled" else {
            throw CommandFailure(
                .noSuchDevice, "NoSuchFile",
                "\(manager.file(name)) is not there, and \(manager.unit(name)) not enabled",
                remedy: "'ubd list --enabled' shows what is")
        }
        let answer = try manager.call(["disable", manager.unit(name)])
        guard answer.status == 0 else { throw manager.refused("disable \(manager.unit(name))", answer) }
        var notices: [Notice] = []
        if before?.active == "active" {
            let device = Enabling(manager: manager, name: name).made.map { "/dev/ubdb\($0.id)" } ?? "its device"
            notices.append(
                Notice(code: "running", message: "\(device) runs on; '\(manager.command("stop", name))' deletes it"))
        }
        if manager.isSystem, environment.host.text(of: "/etc/fstab")?.contains(manager.unit(name)) == true {
            notices.append(
                Notice(code: "fstab", message: "a line of /etc/fstab names \(manager.unit(name)), and still starts it"))
        }
        if isThere {
            notices.append(
                Notice(
                    code: "file",
                    message: "\(manager.file(name)) stays: 'ubd enable \(name)' enables it again, or remove it"))
        }
        for notice in notices { environment.console.error("ubd: note: " + notice.message.printable) }
        if output.asJSON {
            let json = JSON.record([
                ("name", .string(name)), ("unit", .string(manager.unit(name))),
                ("notices", .array(notices.map(\.json))),
            ])
            environment.console.out(json.indentedText)
        } else {
            environment.console.out("\(name): disabled")
        }
        return .success
    }
}
