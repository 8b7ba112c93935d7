import Glibc
import SystemCalls

resetInheritedSignals()
exit(CommandLineTool.run(Array(CommandLine.arguments.dropFirst()), .live()))
