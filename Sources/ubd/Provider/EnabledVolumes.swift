import BrokerInterface

// A device that comes back by itself (`ubd enable`) is a volume by its name, whether it is there or not.
extension Volumes {
    private var manager: ServiceManager { environment.manager(environment.host.uid) }

    /// The device that has this name, if it is there.
    func named(_ name: String, among devices: [Device]) -> Device? { devices.first { $0.name == name } }

    /// What the user has written of a device that comes back; nil when there is no such file, or its unit would fail.
    func enabled(_ name: String) -> DeviceDescription? {
        guard DeviceName.isValid(name), Self.number(name) == nil,
            let description = try? DeviceFiles(manager: manager).read(name), description.problem == nil
        else { return nil }
        return description
    }

    /// Those that are not there, as volumes. Their sizes are not known before they are.
    func enabledVolumes(except taken: Set<String>) -> [Volume] {
        let names = (try? DeviceFiles(manager: manager).names()) ?? []
        return names.filter { !taken.contains($0) }.compactMap { name in
            enabled(name).map {
                Volume(
                    name: name, aliases: [], readOnly: $0.command?.readOnly == true, sizeBytes: nil, usedBytes: nil)
            }
        }
    }

    /// Starts its unit, which adds the device.
    func start(_ name: String) throws(CommandFailure) -> Device {
        let enabling = Enabling(manager: manager, name: name)
        let answer = try manager.call(["start", manager.unit(name)])
        guard answer.status == 0 else {
            throw CommandFailure(
                .failed, "NotStarted", "\(manager.unit(name)) did not start",
                remedy: "'\(manager.journal(name))' says why")
        }
        let made = enabling.made
        let device = try own(BrokerClient(environment: environment).list())
            .first { $0.id == made?.id && $0.generation == made?.generation }
        guard let device else {
            throw CommandFailure(
                .noSuchDevice, "NotStarted", "\(manager.unit(name)) runs, and its device is gone",
                remedy: "'\(manager.command("restart", name))' makes it anew")
        }
        return device
    }
}
