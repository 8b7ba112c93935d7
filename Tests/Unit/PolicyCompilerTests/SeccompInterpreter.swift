import Policy
import PolicyCompiler

/// Runs a filter program as the kernel would (classic BPF over `struct seccomp_data`): shows what a filter for another
/// architecture does. Only the instructions that seccomp allows and libseccomp uses; any other one is an error.
struct SeccompInterpreter {
    struct Unknown: Error { let instruction: UInt64 }

    let program: FilterProgram

    /// AUDIT_ARCH_* of linux/audit.h.
    static func auditArchitecture(_ architecture: Architecture) -> UInt32 {
        switch architecture {
        case .amd64: 0xC000_003E
        case .aarch64: 0xC000_00B7
        }
    }

    func fate(of call: SystemCall, auditArchitecture: UInt32) throws -> Fate {
        let result = try run(call, auditArchitecture: auditArchitecture)
        switch result & 0xFFFF_0000 {
        case 0x7FFF_0000: return .passes
        case 0x0005_0000: return .fails(errno: Int(result & 0xFFFF))
        case 0x8000_0000: return .kills
        default: throw Unknown(instruction: UInt64(result))
        }
    }

    /// A 32-bit word of `struct seccomp_data`: nr, arch, instruction pointer, six arguments of 64 bits.
    private func word(at offset: UInt32, _ call: SystemCall, _ auditArchitecture: UInt32) throws -> UInt32 {
        switch offset {
        case 0: return UInt32(truncatingIfNeeded: call.number)
        case 4: return auditArchitecture
        case 16..<64 where offset % 4 == 0:
            let argument = call.arguments[Int(offset - 16) / 8]
            return UInt32(truncatingIfNeeded: offset % 8 == 0 ? argument : argument >> 32)
        default: throw Unknown(instruction: UInt64(offset))
        }
    }

    private func run(_ call: SystemCall, auditArchitecture: UInt32) throws -> UInt32 {
        var accumulator: UInt32 = 0
        var counter = 0
        while true {
            let instruction = program.instructions[counter]
            let operand = UInt32(truncatingIfNeeded: instruction >> 32)
            let ifTrue = Int(instruction >> 16 & 0xFF)
            let ifFalse = Int(instruction >> 24 & 0xFF)
            counter += 1
            switch instruction & 0xFFFF {
            case 0x20: accumulator = try word(at: operand, call, auditArchitecture)  // ld [k]
            case 0x54: accumulator &= operand  // and #k
            case 0x05: counter += Int(operand)  // ja
            case 0x15: counter += accumulator == operand ? ifTrue : ifFalse  // jeq
            case 0x25: counter += accumulator > operand ? ifTrue : ifFalse  // jgt
            case 0x35: counter += accumulator >= operand ? ifTrue : ifFalse  // jge
            case 0x06: return operand  // ret
            default: throw Unknown(instruction: instruction)
            }
        }
    }
}
