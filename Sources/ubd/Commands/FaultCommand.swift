import ArgumentParser
import BrokerInterface
import Targets
import Varlink

/// `ubd fault`: commands for a device of target fault, and its log.
struct FaultCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "fault",
        abstract: "Say what a device of target fault does next, cut its power, and show what it did.",
        discussion: """
            ACTIONS
              status    the rules with their counts, the cache, the power
              set       other rules, another seed or a count of writes: whatever is not given stays. The rules' counts begin
                        anew, and stuck requests go on
              cut       cut the power: the cache is lost, and every request fails with EIO
              restore   give the power back
              log       what was done to which request; the last 2048 records

            RULES have ';' between them: kinds of requests, an action, and conditions
              read, write, flush, discard, all    or several with commas
              error=EIO        also ENOSPC, ETIMEDOUT, medium, transport, target, protection
              delay=5ms        us, ms or s; 1ms-10ms: evenly between; exp:5ms: exponentially, 5 ms on average
              torn=3           only the first 3 sectors are written, then EIO; with acked it looks as if all were
              flip=1           one bit of what is read is wrong
              stuck            no answer before the next 'set' or the end of the device
              rate=0.5%  sectors=100-199  after=1000  times=3    which requests; heal: a write makes a bad sector good

            EXAMPLES
              ubd add -t fault -f disk.img --cache 16M --seed 7
              ubd fault set -n 0 --rules 'read error=medium sectors=2048-2055 heal; write delay=exp:2ms rate=1%'
              ubd fault set -n 0 --rules '' --cut-after 100    no rules; the power ends after 100 more writes
              ubd fault cut -n 0 && ubd fault log -n 0 --json

            When a command returns, every later request meets it.
            """)

    enum Action: String, ExpressibleByArgument, CaseIterable {
        case status, set, cut, restore, log
    }

    @Argument(help: "status, set, cut, restore or log.", completion: .list(Action.allCases.map(\.rawValue)))
    var action: Action

    @Option(name: [.customShort("n"), .long], help: ArgumentHelp("N of /dev/ubdbN.", valueName: "id"))
    var number: UInt32

    @Option(help: ArgumentHelp("For set: the rules. (default: those that it has)", valueName: "text"))
    var rules: String?

    @Option(help: ArgumentHelp("For set: the seed. (default: the one that it has)", valueName: "count"))
    var seed: Int64?

    @Option(
        name: .customLong("cut-after"),
        help: ArgumentHelp(
            "For set: cut the power after so many writes from now; 0: not. (default: 0)", valueName: "count")
    )
    var cutAfter: Int64?

    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard action == .set else {
            guard rules == nil, seed == nil, cutAfter == nil else {
                throw ValidationError("--rules, --seed and --cut-after are for 'set'")
            }
            return
        }
        guard rules != nil || seed != nil || cutAfter != nil else {
            throw ValidationError("Give --rules, --seed or --cut-after")
        }
        guard seed ?? 0 >= 0, cutAfter ?? 0 >= 0 else { throw ValidationError("Give numbers that are not negative") }
    }

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        guard let device = try client.list(id: number).first else { throw ListCommand.noSuchDevice(number) }
        guard (try? TargetManifest.named(device.target))?.takesControl == true else {
            throw CommandFailure(
                .usage, "Usage", "device \(number) is of target \(device.target), which takes no commands",
                remedy: "add one with 'ubd add -t fault -f FILE'")
        }
        let control = try FaultControlFile.find(device)
        var plan = try control.plan()
        try change(&plan)
        // Also for 'status' and 'log': what is there then is what was done until now.
        let state = try control.obey(plan, device, environment)
        if action == .log { show(control.log(), environment) } else { show(state, plan, environment) }
        return .success
    }

    private func change(_ plan: inout FaultPlan) throws(CommandFailure) {
        switch action {
        case .status, .log: break
        case .cut: plan.power = (plan.power / 2 + 1) * 2 + 1
        case .restore: plan.power = (plan.power / 2 + 1) * 2
        case .set:
            if let rules {
                do throws(FaultTextError) { plan.rules = try FaultPlan.rules(rules) } catch {
                    throw CommandFailure(error)
                }
            }
            if let seed { plan.seed = UInt64(seed) }
            plan.cutAfter = UInt64(cutAfter ?? 0)
            plan.sets += 1
        }
    }

    private func show(_ state: FaultState, _ plan: FaultPlan, _ environment: CommandEnvironment) {
        let console = environment.console
        if output.asJSON { return console.out(state.json(plan, device: number).indentedText) }
        console.out("power \(state.power.rawValue), seed \(plan.seed)")
        if let left = state.writesLeft { console.out("the power is cut after \(left) more writes") }
        console.out(state.counts.map { "\($0.name) \($0.value)" }.joined(separator: ", "))
        guard !plan.rules.isEmpty else { return }
        var table = Table(header: ["MATCHED", "STRUCK", "RULE"])
        for (index, rule) in plan.rules.enumerated() {
            let counts = state.counts(of: index)
            table.rows.append(["\(counts.matched)", "\(counts.struck)", rule.description])
        }
        for line in table.lines { console.out(line) }
    }

    private func show(_ records: [FaultRecord], _ environment: CommandEnvironment) {
        if output.asJSON { return environment.console.out(JSON.array(records.map(\.json)).indentedText) }
        var table = Table(header: FaultRecord.header)
        table.rows = records.map(\.cells)
        for line in table.lines { environment.console.out(line) }
    }
}
