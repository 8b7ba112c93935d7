import ArgumentParser
import BrokerInterface

/// `ubd info`: the broker and what it lets the caller do.
struct InfoCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "info", abstract: "Show the broker and what you may do.",
        discussion: """
            Your limits come from the access policy, /etc/ubd/access.policy. The rule that applies to you is shown.
            """)

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let info: InfoReply
        do { info = try BrokerClient(environment: environment).info() } catch {
            throw BrokerProcess.explain(error, environment)
        }
        if output.asJSON {
            environment.console.out(info.json.indentedText)
        } else {
            for line in Self.lines(info) { environment.console.out(line.printable) }
        }
        return .success
    }

    /// The control groups of devices.
    private static func groups(_ info: InfoReply) -> String {
        guard let path = info.controlGroup else { return "no control groups for devices" }
        return "\(info.controllers.joined(separator: ", ")) in \(path)"
    }

    /// Who brings a file-backed device back when no process keeps its file.
    private static func recovery(_ info: InfoReply) -> String {
        guard let room = info.descriptorStore else {
            let why = info.descriptorStoreProblem.map { ": \($0)" } ?? ""
            return "by 'ubd recover' when broker and worker die together (systemd keeps no files\(why))"
        }
        return "by itself, also when broker and worker die together (systemd keeps the files of \(room) devices)"
    }

    /// Their limits, one row each.
    private static func rows(_ limits: GroupLimits) -> [String] {
        func size(_ bytes: Int64) -> String { ByteSize.text(UInt64(clamping: bytes)) }
        return [
            limits.deviceMemory.map { "\(size($0)) of memory per device" },
            limits.userMemory.map { "\(size($0)) of memory for all devices together" },
            limits.deviceTasks.map { "\($0) tasks per device" },
            limits.cpuWeight.map { "processor weight \($0)" },
            limits.cpuQuota.map { "\($0) % of a processor" },
            limits.ioBandwidth.map { "\(size($0)) per second read and as much written, on each disk" },
            limits.ioOperations.map { "\($0) reads and as many writes per second, on each disk" },
        ].compactMap { $0 }
    }

    static func lines(_ info: InfoReply) -> [String] {
        var rows: [(String, String)] = [
            ("broker", "\(info.version) at \(info.socket)"),
            ("kernel", info.kernel),
            ("features", "\(info.features.count) of ublk, 0x\(String(info.featureBits, radix: 16)) ('ubd features')"),
            ("targets", info.targets.joined(separator: ", ")),
            ("devices", "\(info.devicesOfCaller) yours, \(info.devices) in all, room for \(info.workerUidsFree) more"),
            ("workers", "group \(info.workerGroup)"),
            ("groups", groups(info)),
            ("recovery", recovery(info)),
            ("you may", info.permitted ? "add devices" : "not add devices"),
            ("rule", info.rule ?? "none matched"),
        ]
        if let limits = info.limits {
            rows += [
                ("limits", "\(limits.maxDevices) devices of \(limits.maxQueues) queues x \(limits.maxDepth) requests"),
                ("", "\(ByteSize.text(UInt64(clamping: limits.maxMemoryBytes))) of I/O buffers in all"),
                ("", limits.maxSizeBytes.map { "\(ByteSize.text(UInt64(clamping: $0))) a device" } ?? "any size"),
                ("", "targets: \(limits.targets.joined(separator: ", "))"),
                ("", limits.readOnlyOnly ? "read-only devices only" : "writable devices too"),
                ("", limits.zeroCopy ? "zero copy granted" : "no zero copy"),
                ("", "\(limits.maxStarts.map(String.init) ?? "any number of") adds, upgrades and recoveries a minute"),
            ]
            if let connections = limits.connections {
                let place = limits.anyServer == true ? "any host" : "this host only"
                rows.append(("", "\(connections) connections a device, to servers on \(place)"))
            }
            if let bytes = limits.memoryDiskBytes {
                rows.append(("", "\(ByteSize.text(UInt64(clamping: bytes))) of memory disks in all"))
            }
            if let ids = limits.ids { rows.append(("", "device numbers to ask for with -n: \(ids)")) }
            if let cpus = limits.cpus { rows.append(("", "workers run on CPUs \(cpus)")) }
            if let groups = limits.groups { rows += Self.rows(groups).map { ("", $0) } }
            if let penalty = limits.penalty {
                rows.append(("", "no new worker for \(penalty) s after one of yours broke its sandbox"))
            }
        }
        return rows.map { name, value in
            name + String(repeating: " ", count: 10 - name.count) + value
        }
    }
}
