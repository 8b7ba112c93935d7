import BrokerInterface
import Dialing
import Glibc
import SystemCalls
import Targets

// `ubd add` of a target whose input is a server: `ubd-nbd` dials, the broker makes the device, `ubd-nbd` keeps it.
extension AddCommand {
    func performConnected(
        _ plan: AddPlan, _ input: TargetInput, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> ExitStatus {
        var told: [Notice] = []
        let wanted = try connections(plan, environment, &told)
        let dialer = try DialProcess(try words(plan, input, connections: wanted, environment), environment)
        let answer = try dialer.answer(environment)
        var dialed = try DialedDevice(answer.export, maxIOBytes: Int64(plan.maxIOBytes))
        dialed.noteWrites(readOnly: readOnly)
        var request = try self.request
        request.queues = Int64(answer.export.connections)
        request.maxIOBytes = dialed.maxIOBytes
        request.readOnly = readOnly || dialed.isReadOnly ? true : nil
        request.fileName = Self.label(answer.export.label)
        request.options.removeAll { $0.name == "connections" }
        request.options += [OptionValue("connections", String(answer.export.connections))] + dialed.options
        let complete = request
        told += dialed.notices
        try Interruption.untilTold(environment) { (environment) throws(CommandFailure) in
            let (device, notices) = try BrokerClient(environment: environment).add(
                complete, files: answer.sockets.numbers)
            if let notice = dialer.keep(KeepOrder(id: device.id, generation: device.generation), environment) {
                told.append(notice)
            }
            show(device, told + notices.filter { notice in !told.contains { $0.code == notice.code } }, environment)
        }
        return .success
    }

    /// How many connections to ask for: each is a queue.
    private func connections(
        _ plan: AddPlan, _ environment: CommandEnvironment, _ told: inout [Notice]
    ) throws(CommandFailure) -> Int {
        let wanted = Int(plan.queues)
        guard wanted <= 16 else {
            throw CommandFailure(
                .usage, "Usage", "a device has at most 16 connections, and --queues \(wanted) wants one for each",
                remedy: "give --queues 16 or less")
        }
        let processors = environment.processors ?? sysconf(Int32(_SC_NPROCESSORS_CONF))
        guard wanted > processors else { return wanted }
        // The kernel gives a device no more queues than there are CPUs.
        told.append(
            Notice(
                code: "queues",
                message: "this host has \(processors) CPUs, so the device has as many connections and queues"))
        return processors
    }

    /// The arguments of `ubd-nbd`.
    private func words(
        _ plan: AddPlan, _ input: TargetInput, connections: Int, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> [[CChar]] {
        if let (name, value) = ofTarget.inputs.first(where: { $0.name != input.name }) {
            throw CommandFailure(
                .usage, "Usage", "target \(plan.target.name) takes no \(name), so '\(value)' would not be used",
                remedy: "leave --\(name) out, or use another target")
        }
        if let partition { throw Self.noParts(plan.target, partition) }
        guard !shared else {
            throw CommandFailure(
                .usage, "Usage", "target \(plan.target.name) takes no file, so there is nothing to share",
                remedy: "leave --shared out; other clients of the server are its own matter")
        }
        let uri = ofTarget.inputs.first?.value
        guard (uri == nil) != server.isEmpty else {
            throw CommandFailure(
                .usage, "Usage",
                uri == nil
                    ? "target \(plan.target.name) needs a server" : "both --\(input.name) and a command name a server",
                remedy:
                    "give --\(input.name) nbd://HOST/EXPORT, or a command that ubd starts, as in '-- nbdkit memory 1G'")
        }
        return DialProcess.words(
            connections: connections, dial, restarts: restartCommand, uri: uri, command: server, environment)
    }

    /// Options that mean nothing for a target that no server is behind.
    func refuseDialling(_ target: TargetManifest) throws(CommandFailure) {
        let given = dial.given ?? (restartCommand ? "--restart-command" : nil)
        guard let what = given ?? server.first.map({ "the command '\($0.readable)'" }) else { return }
        throw CommandFailure(
            .usage, "Usage", "target \(target.name) has no server, so \(what) would not be used",
            remedy: "leave it out, or use --target nbd")
    }
}
