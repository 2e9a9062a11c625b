module blinky(input clk, output reg [3:0] led);
  reg [23:0] count = 0;
  always @(posedge clk) begin
    count <= count + 1;
    led <= count[23:20] ^ {count[19], 3'b0};
  end
endmodule
