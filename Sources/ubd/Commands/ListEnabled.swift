import BrokerInterface
import Varlink

/// A device that has a file, for `ubd list --enabled`.
struct EnabledDevice {
    var name: String
    var path: String
    var unit: String
    /// nil: the file cannot be read.
    var description: DeviceDescription?
    /// Why it would not come back, as far as the file tells.
    var problem: String?
    /// nil: the service manager has not told.
    var state: ServiceManager.State?
    /// The number of the device that the unit has; nil: there is none, or the broker has not told.
    var device: UInt32?
    /// Whether that is known.
    var isKnown = false

    var target: String? { description?.command?.target }
    /// The file or server behind the device.
    var source: String? { description?.command?.ofTarget.inputs.first?.value }

    var row: [String] {
        let there = isKnown ? device.map { "ubdb\($0)" } ?? "-" : "?"
        return [
            name, state.map { "\($0.enabled), \($0.active)" } ?? "?", there, description?.number ?? "?",
            target ?? "?", problem ?? description?.options.joined(separator: " ") ?? "",
        ]
    }

    var json: JSON {
        .record([
            ("name", .string(name)), ("path", .string(path.readable)), ("unit", .string(unit)),
            ("enabled", state.map { .string($0.enabled) }), ("active", state.map { .string($0.active) }),
            ("number", description.map { .string($0.number) }), ("target", target.map { .string($0) }),
            ("source", source.map { .string($0.readable) }),
            ("options", description.map { .array($0.options.map { .string($0.readable) }) }),
            ("problem", problem.map { .string($0.readable) }),
            ("present", isKnown ? .bool(device != nil) : nil), ("device", device.map { .integer(Int64($0)) }),
        ])
    }
}

extension DeviceDescription {
    /// What its unit would fail for; nil when the file tells of nothing.
    var problem: String? {
        if number.isEmpty { return "NUMBER is missing" }
        let isNumber = UInt32(number).map { AddPlan.ids.contains(Int64($0)) } == true
        guard isNumber || number == Self.anyNumber else { return "NUMBER can not be '\(number)'" }
        if options.isEmpty { return "OPTIONS is missing" }
        guard let command else { return "OPTIONS are not those of 'ubd add'" }
        if command.number != nil { return "OPTIONS has a number, which NUMBER says" }
        do throws(CommandFailure) {
            _ = try ComingBack(command)
            return nil
        } catch { return error.message }
    }
}

// `ubd list --enabled`.
extension ListCommand {
    func performEnabled(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        if number != nil || watches || columnNames != nil {
            throw CommandFailure(
                .usage, "Usage", "--enabled shows files of devices, which have no number, changes or columns",
                remedy: "leave -n, -w and -o out")
        }
        let (console, manager) = (environment.console, environment.manager(environment.host.uid))
        let devices = try enabledDevices(manager, environment)
        if output.asJSON {
            console.out(JSON.array(devices.map(\.json)).indentedText)
            return .success
        }
        guard !devices.isEmpty else {
            console.error("ubd: note: there is no device in \(manager.folder)".printable)
            return .success
        }
        var table = Table(header: ["NAME", "UNIT", "DEVICE", "NUMBER", "TARGET", "OPTIONS"])
        table.rows = devices.map(\.row)
        for line in table.lines { console.out(line) }
        return .success
    }

    /// All devices with a file. What systemd or the broker does not tell is unknown, and the rest is shown.
    private func enabledDevices(
        _ manager: ServiceManager, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> [EnabledDevice] {
        let files = DeviceFiles(manager: manager)
        let names = try files.names()
        guard !names.isEmpty else { return [] }
        let states = told(environment) { () throws(CommandFailure) in
            try manager.states(names.filter(DeviceName.isValid))
        }
        let present = told(environment) { () throws(CommandFailure) in
            try BrokerClient(environment: environment).list()
        }
        return names.map { name in
            var one = EnabledDevice(name: name, path: manager.file(name), unit: manager.unit(name))
            do throws(CommandFailure) {
                let description = try files.read(name)
                (one.description, one.problem) = (description, description.problem)
            } catch { one.problem = error.message }
            if !DeviceName.isValid(name) { one.problem = "the name is not one that 'ubd enable' takes" }
            one.state = states?[name]
            guard let present else { return one }
            one.isKnown = true
            let made = Enabling(manager: manager, name: name).made
            one.device = present.first { $0.id == made?.id && $0.generation == made?.generation }?.id
            return one
        }
    }

    /// nil and a note when nobody tells.
    private func told<Value>(
        _ environment: CommandEnvironment, _ ask: () throws(CommandFailure) -> Value
    ) -> Value? {
        do throws(CommandFailure) { return try ask() } catch {
            environment.console.error("ubd: note: " + "\(error.message); \(error.remedy)".printable)
            return nil
        }
    }
}
